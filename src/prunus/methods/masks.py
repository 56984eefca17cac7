"""Soft removal: channels that are silent where they are produced, in a network that keeps its shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from prunus.graph.channels import ChannelGraph, Keep, Layer

WHISPER = 1e-6
"""What a masked channel is multiplied by while it may still come back.

Zero would be final: ReLU passes no gradient where its input is exactly zero, so the γ and β of a silent channel would
never move again. A millionth of the channel changes the network by less than the rounding of bfloat16, and its gradient
is that of the whole channel.
"""


def mask_channels(model: nn.Module, graph: ChannelGraph, keep: Keep, factor: float = 0.0) -> None:
    """Multiply, in place, what makes the channels that `keep` drops: γ and β of the BatchNorm after their layer.

    Where a layer has no affine BatchNorm right after it, its filter and bias are multiplied instead.

    Args:
        model: the network that `graph` was traced from; on any device.
        graph: its channel graph.
        keep: one flag a channel, (channel_count + 1,), True = keep.
        factor: 0 silences for good; WHISPER lets the channel come back.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for tensor, layer, axis in _producers(graph, tensors):
            kept = torch.from_numpy(keep[layer.channels]).to(tensor.device)
            shape = [1] * tensor.dim()
            shape[axis] = -1
            tensor.mul_(torch.where(kept, 1.0, factor).to(tensor.dtype).reshape(shape))


def _producers(graph: ChannelGraph, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Layer, int]]:
    """Go through the tensors that scale a layer's output, each once, with the axis that its channels run along."""
    done: set[int] = set()
    for layer in graph.layers:
        affine = layer.norm is not None and layer.norm.weight is not None
        if affine and layer.norm is not None:
            names = ((layer.norm.weight, 0), (layer.norm.bias, 0))
        else:
            names = ((layer.weight, 1 if layer.transposed else 0), (layer.bias, 0))
        for name, axis in names:
            if name is not None and id(tensors[name]) not in done:
                done.add(id(tensors[name]))
                yield tensors[name], layer, axis
