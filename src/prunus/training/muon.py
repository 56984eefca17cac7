"""Muon for convolutional networks: a filter bank's step is made orthogonal, everything else has SGD.

Under SGD the few directions in which a layer's gradient is large take nearly all of its step. Muon (Jordan et al. 2024,
kellerjordan.github.io/posts/muon) brings all singular values of the step to about 1, so that what is rare is learnt as
fast. `torch.optim.Muon` takes matrices alone; here a convolution's filters are the rows of one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

# A quintic that, applied five times, sends every singular value in (0, 1] to about 1 (Jordan et al. 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def has_filters(parameter: Tensor) -> bool:
    """Tell whether a parameter is the filters of a convolution that is not depthwise: rows of more than one channel.

    A depthwise convolution's rows see a channel each and have nothing to be orthogonal to. Linear layers stay with SGD:
    in a classifier the last one must, as Jordan et al. found, and small networks have no others.
    """
    return parameter.ndim >= 3 and parameter.shape[1] > 1


class Muon(Optimizer):
    """SGD with Nesterov momentum; parameters in groups with `orthogonal: True` take orthogonal steps instead.

    Such a step is lr · (1 − momentum) · √max(1, rows / columns) times an orthogonal matrix. Weight decay shrinks the
    filters as much a step as it does under SGD once the momentum has built up, so that a recipe's settings serve both.

    Args:
        groups: parameter groups, with `weight_decay` and `orthogonal`; filters (rows, …) where the latter is True.
        lr: learning rate, above 0.
        momentum: in [0, 1).
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step for everything that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            (_step_filters if group["orthogonal"] else _step_others)(group, parameters, buffers)


def _step_others(group: dict[str, Any], parameters: list[Tensor], buffers: list[Tensor]) -> None:
    sgd(
        parameters,
        [parameter.grad for parameter in parameters if parameter.grad is not None],
        list(buffers),
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=0.0,
        nesterov=group["momentum"] > 0,
        maximize=False,
    )


def _step_filters(group: dict[str, Any], parameters: list[Tensor], buffers: list[Tensor]) -> None:
    momentum, rate = group["momentum"], group["lr"]
    alike: defaultdict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for parameter, buffer in zip(parameters, buffers, strict=True):
        assert parameter.grad is not None
        buffer.mul_(momentum).add_(parameter.grad)
        ahead = parameter.grad.add(buffer, alpha=momentum).flatten(1)
        alike[tuple(ahead.shape)].append((parameter, ahead))
    for (rows, columns), members in alike.items():
        steps = orthogonal(torch.stack([ahead for _, ahead in members]))
        size = rate * (1 - momentum) * max(1.0, rows / columns) ** 0.5
        for (parameter, _), step in zip(members, steps, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"] / (1 - momentum))
            parameter.add_(step.view(parameter.shape), alpha=-size)


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring all singular values but tiny ones to about 1, within 0.68 to 1.14, by a Newton-Schulz iteration.

    Args:
        matrices: (N, rows, columns), floating point.

    Returns:
        The same shape, type and device. CUDA iterates in bfloat16, which is what the quintic was made for.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    found: Tensor = matrices.mT if tall else matrices
    found = found / torch.linalg.matrix_norm(found, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny ** 0.5)
    if found.device.type == "cuda":
        found = found.bfloat16()
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    return (found.mT if tall else found).to(matrices.dtype)
