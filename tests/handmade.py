"""Three small networks with the channel graphs that a person writes down for them: a row, a sum, a concatenation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from prunus.graph.channels import (
    Activation,
    ChannelGraph,
    ChannelGroup,
    Contraction,
    Ids,
    LabelledTensor,
    Layer,
    Norm,
)

SIDE = 8  # of the square inputs


class Row(nn.Module):
    """conv 3→6, BatchNorm, ReLU, depthwise 6, conv 6→5 with a bias, ReLU, linear 5→2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.conv2 = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


class Sum(nn.Module):
    """conv 3→4, BatchNorm; conv 4→4, BatchNorm, added to its input; linear 4→2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(x + self.bn2(self.conv2(x))).mean((2, 3)))


class Concat(nn.Module):
    """conv 3→3 beside conv 3→2, both to conv 5→4; linear 4→2. No BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 3, 1, bias=False)
        self.right = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.join = nn.Conv2d(5, 4, 3, bias=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], dim=1)
        return self.fc(torch.relu(self.join(both)).mean((2, 3)))


def row_graph() -> ChannelGraph:
    one, two = np.arange(6), np.arange(6, 11)
    tensors = [
        tensor("conv1.weight", (6, 3, 3, 3), {0: one}),
        *norm_tensors("bn1", one),
        tensor("depth.weight", (6, 1, 3, 3), {0: one}),
        tensor("conv2.weight", (5, 6, 3, 3), {0: two, 1: one}),
        tensor("conv2.bias", (5,), {0: two}),
        tensor("fc.weight", (2, 5), {1: two}),
        tensor("fc.bias", (2,), {}),
    ]
    layers = [
        Layer("conv1", "conv1.weight", None, norm_names("bn1"), one),
        Layer("depth", "depth.weight", None, None, one),
        Layer("conv2", "conv2.weight", "conv2.bias", None, two),
        Layer("fc", "fc.weight", "fc.bias", None, np.full(2, -1)),
    ]
    uses = {"conv1": 64, "depth": 64, "conv2": 16, "fc": 1}
    return graph(tensors, {"conv1": one, "conv2": two}, layers, uses, [one, two])


def sum_graph() -> ChannelGraph:
    ids = np.arange(4)
    tensors = [
        tensor("conv1.weight", (4, 3, 3, 3), {0: ids}),
        *norm_tensors("bn1", ids),
        tensor("conv2.weight", (4, 4, 3, 3), {0: ids, 1: ids}),
        *norm_tensors("bn2", ids),
        tensor("fc.weight", (2, 4), {1: ids}),
        tensor("fc.bias", (2,), {}),
    ]
    layers = [
        Layer("conv1", "conv1.weight", None, norm_names("bn1"), ids),
        Layer("conv2", "conv2.weight", None, norm_names("bn2"), ids),
        Layer("fc", "fc.weight", "fc.bias", None, np.full(2, -1)),
    ]
    return graph(tensors, {"conv1": ids}, layers, {"conv1": 64, "conv2": 64, "fc": 1}, [ids, ids])


def concat_graph() -> ChannelGraph:
    left, right, join = np.arange(3), np.arange(3, 5), np.arange(5, 9)
    tensors = [
        tensor("left.weight", (3, 3, 1, 1), {0: left}),
        tensor("right.weight", (2, 3, 3, 3), {0: right}),
        tensor("join.weight", (4, 5, 3, 3), {0: join, 1: np.concatenate([left, right])}),
        tensor("fc.weight", (2, 4), {1: join}),
        tensor("fc.bias", (2,), {}),
    ]
    layers = [
        Layer("left", "left.weight", None, None, left),
        Layer("right", "right.weight", None, None, right),
        Layer("join", "join.weight", None, None, join),
        Layer("fc", "fc.weight", "fc.bias", None, np.full(2, -1)),
    ]
    groups = {"left": left, "right": right, "join": join}
    return graph(tensors, groups, layers, {"left": 64, "right": 64, "join": 36, "fc": 1}, [join])


HANDMADE = {"row": (Row, row_graph), "sum": (Sum, sum_graph), "concat": (Concat, concat_graph)}


def tensor(
    name: str,
    shape: tuple[int, ...],
    axes: Mapping[int, Ids],
    *,
    is_parameter: bool = True,
    dtype: torch.dtype = torch.float32,
) -> LabelledTensor:
    fields = tuple(ids.reshape([-1 if a == axis else 1 for a in range(len(shape))]) for axis, ids in axes.items())
    return LabelledTensor(name, shape, dtype, is_parameter, fields)


def norm_tensors(name: str, ids: Ids) -> list[LabelledTensor]:
    kinds = {"weight": True, "bias": True, "running_mean": False, "running_var": False}
    found = [tensor(f"{name}.{kind}", ids.shape, {0: ids}, is_parameter=flag) for kind, flag in kinds.items()]
    return [*found, tensor(f"{name}.num_batches_tracked", (), {}, is_parameter=False, dtype=torch.int64)]


def norm_names(name: str) -> Norm:
    return Norm(f"{name}.weight", f"{name}.bias", f"{name}.running_mean", f"{name}.running_var", 1e-5)


def graph(
    tensors: Sequence[LabelledTensor],
    groups: Mapping[str, Ids],
    layers: Sequence[Layer],
    positions: Mapping[str, int],
    activations: Sequence[Ids] = (),
) -> ChannelGraph:
    return ChannelGraph(
        tensors={t.name: t for t in tensors},
        groups=tuple(ChannelGroup(name, ids, ((f"{name}.weight", 0),)) for name, ids in groups.items()),
        layers=tuple(layers),
        contractions=tuple(Contraction(f"{name}.weight", n, 1) for name, n in positions.items()),
        activations=tuple(Activation(k, ids) for k, ids in enumerate(activations)),
        frozen=(),
        channel_count=sum(len(ids) for ids in groups.values()),
    )


def chain_graph(widths: Sequence[int], positions: Sequence[int]) -> ChannelGraph:
    """A network of 1×1 convolutions from 2 channels through `widths` to 3, with so many positions each."""
    ends = np.cumsum([0, *widths])
    ids = [np.arange(start, stop) for start, stop in pairwise(ends)]
    tensors, layers = [], []
    for k, n in enumerate([*widths, 3]):
        axes = ({0: ids[k]} if k < len(widths) else {}) | ({1: ids[k - 1]} if k else {})
        tensors.append(tensor(f"c{k}.weight", (n, widths[k - 1] if k else 2, 1, 1), axes))
        channels = ids[k] if k < len(widths) else np.full(3, -1)
        layers.append(Layer(f"c{k}", f"c{k}.weight", None, None, channels))
    groups = {f"c{k}": own for k, own in enumerate(ids)}
    return graph(tensors, groups, layers, {f"c{k}": n for k, n in enumerate(positions)})
