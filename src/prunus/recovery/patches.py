"""What a layer sees at single output positions: rows of a linear problem."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.recovery.watching import LayerCall


def positions_of(call: LayerCall) -> int:
    """Return at how many positions, over all its examples, a layer's output was computed."""
    return call.out.numel() // call.out.shape[1]


def inputs_at(call: LayerCall, index: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Return what a layer saw at some output positions, (positions, groups, C_in / groups · kernel)."""
    if call.linear:
        return call.x[index].unsqueeze(1)
    padded = F.pad(call.x, [side for pad in reversed(call.padding) for side in (pad, pad)])
    coordinates = _unravelled(index, call.out)
    channels_last = padded.movedim(1, -1)
    place = coordinates[0][:, None]
    offsets = torch.cartesian_prod(*(torch.arange(size, device=index.device) for size in kernel)).view(-1, len(kernel))
    for axis, size in enumerate(padded.shape[2:]):
        at = coordinates[axis + 1][:, None] * call.stride[axis] + offsets[:, axis] * call.dilation[axis]
        place = place * size + at  # (positions, kernel)
    seen = channels_last.reshape(-1, padded.shape[1])[place]  # (positions, kernel, C_in)
    return seen.mT.reshape(len(index), call.groups, -1)


def values_at(out: Tensor, index: Tensor) -> Tensor:
    """Return the values of a layer's output, or of what has its shape, at some positions, (positions, C_out)."""
    return out.movedim(1, -1).reshape(-1, out.shape[1])[index]


def _unravelled(index: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """Return the example and the spatial coordinates of output positions."""
    sides = (out.shape[0], *out.shape[2:])
    strides = [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
    return tuple(index // stride % side for stride, side in zip(strides, sides, strict=True))
