"""An exponential moving average of a network's weights, which is often better than the weights of the last step."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


def average_of(model: nn.Module, decay: float) -> AveragedModel | None:
    """Make the average that `update_parameters` moves towards `model` after a step; None for a decay of 0.

    It starts as the weights after the first step; step n moves it by 1 − min(decay, (1 + n) / (10 + n)), so that a
    short training is not held back by where it began (the rule of TensorFlow's ExponentialMovingAverage). BatchNorm's
    running statistics are averaged like the weights: as they are at the end they belong to the weights of the last few
    steps, which the average is not. Whole numbers, such as the count of batches, are copied.

    Args:
        model: laid out and on its device; the average is a copy of it beside it.
        decay: in [0, 1); 0.999 looks back about a thousand steps.
    """
    if not decay:
        return None

    def follow(averages: Tensors, values: Tensors, number: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
            return
        done = int(averaged.n_averaged)  # `number` is a copy on the device, for which a GPU would have to wait
        get_ema_multi_avg_fn(min(decay, (1 + done) / (10 + done)))(averages, values, number)

    averaged = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    return averaged
