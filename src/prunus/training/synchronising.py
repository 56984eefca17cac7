"""BatchNorm over the images of all processes, in place of each over its own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.training.team import Team

BatchNorm = nn.modules.batchnorm._BatchNorm


@contextlib.contextmanager
def synchronised(model: nn.Module, team: Team, wanted: bool) -> Iterator[None]:
    """Let BatchNorm in training mode see the whole batch, as long as the block lasts.

    The modules stay what they are, so that nothing that looks at the network between epochs, or copies it, meets
    another kind of module. On CUDA torch's own SyncBatchNorm computes, which has no code for the CPU.

    Args:
        model: the network that trains.
        team: the processes; with one there is nothing to do.
        wanted: whether to do it.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)] if wanted and team.size > 1 else []
    for norm in norms:
        if team.device.type == "cuda":
            forward = nn.SyncBatchNorm.convert_sync_batchnorm(norm).forward  # shares the tensors
        else:
            forward = functools.partial(_over_all, norm)
        norm.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _over_all(norm: Any, values: Tensor) -> Tensor:
    """Normalise (N, C, …) by mean and variance over all processes' values."""
    if not norm.training:
        return F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    axes = [0, *range(2, values.dim())]
    shape = [1, -1, *(1 for _ in axes[1:])]
    numbers = values.float()
    count = torch.tensor(float(values.numel() // values.shape[1]), device=values.device)
    dist.all_reduce(count)
    mean = _sum(numbers.sum(axes)) / count
    centred = numbers - mean.view(shape)
    variance = _sum(centred.square().sum(axes)) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(mean.detach(), share)
            norm.running_var.lerp_(variance.detach() * (count / (count - 1)), share)  # unbiased, as torch has it
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    normalised: Tensor = result.to(values.dtype)
    return normalised


def _sum(values: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return summed


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        dist.all_reduce(summed)
        return summed
