"""Blocks whose forward holds sizes: as attributes, numbers, a closure's numbers, or in padding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, conv, conv_norm
from torch import Tensor, nn


class Padded(Block):
    """A shortcut padded with channels of zeros; `how` says where the numbers come from."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        outputs = inputs + 4
        super().__init__(outputs)
        self.how = how
        self.conv = nn.Sequential(conv_norm(inputs, width), conv(width, outputs), nn.BatchNorm2d(outputs))
        self.padding = (0, 0, 0, 0, 1, 3)
        self.before, self.after = 1, 3
        self.planes = outputs
        self.pad = nn.ConstantPad3d((0, 0, 0, 0, 1, 3), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "tuple":
            short = F.pad(x, self.padding)
        elif self.how == "numbers":
            short = F.pad(x, (0, 0, 0, 0, self.before, self.after))
        elif self.how == "difference":
            short = F.pad(x, (0, 0, 0, 0, 0, self.planes - x.shape[1]))
        elif self.how == "shapes":
            short = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        elif self.how == "module":
            short = self.pad(x.unsqueeze(1)).squeeze(1)
        elif self.how == "zeros":
            short = torch.cat([x, x.new_zeros(len(x), y.size(1) - x.size(1), *x.shape[2:])], 1)
        else:
            short = F.pad(x, (0, 0, 0, 0, 2, 2))
        return F.silu(y + short)


class OptionA(Block):
    """The CIFAR ResNet's: a lambda in a module, every second position, a quarter of the width on either side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(2 * inputs)
        planes = 2 * inputs
        self.conv = nn.Sequential(nn.Conv2d(inputs, planes, 3, 2, 1, bias=False), nn.BatchNorm2d(planes))
        self.shortcut = Shortcut(
            lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x) + self.shortcut(x))


class Shortcut(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class ThroughVector(Block):
    """Pool to 2 × 2, flatten, linear, and back to a map of channels whose numbers are written or stored."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        super().__init__(inputs + (8 if how == "literal" else width))
        self.how, self.width, self.side = how, 8 if how == "literal" else width, 2
        self.linear = nn.Linear(inputs * 4, self.width * 4)
        self.unflatten = nn.Unflatten(1, (self.width, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1))
        if self.how == "literal":
            y = y.view(-1, 8, 2, 2)
        elif self.how == "attributes":
            y = y.view(-1, self.width, self.side, self.side)
        elif self.how == "rest":
            y = y.reshape(len(x), -1, 2, 2)
        else:
            y = self.unflatten(y)
        return torch.cat([x, F.interpolate(y, size=x.shape[2:])], 1)


class GroupedView(Block):
    """Weights within groups: (N, groups, per group, H, W), whose sizes are stored, or written."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        per_group = 4 if how == "literals" else max(2, width // 2)
        super().__init__(4 * per_group)
        self.how, self.groups, self.per_group = how, 4, per_group
        self.conv = conv(inputs, 4 * per_group)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = self.conv(x)
        if self.how == "literals":
            y = y.view(n, 4, 4, h, w)
        elif self.how == "literal and rest":
            y = y.view(n, 4, -1, h, w)
        else:
            y = y.view(n, self.groups, self.per_group, h, w)
        y = y * torch.sigmoid(y.sum(1, keepdim=True))
        return y.flatten(1, 2) if self.how != "attributes" else y.view(n, self.groups * self.per_group, h, w)


def _closure_view(inputs: int, width: int) -> nn.Module:
    half = inputs // 2
    return Written(lambda m, x: m.conv(x.view(len(x), 2, half, *x.shape[2:]).sum(1)), width, conv=conv(half, width))


def _asserts(m: Written, x: Tensor) -> Tensor:
    assert x.shape[1] == m.channels, "wrong number of channels"
    return m.conv(x)


def _branches_on_width(inputs: int, width: int) -> nn.Module:
    return Written(lambda m, x: m.conv(x) if x.shape[1] >= inputs else -m.conv(x), width, conv=conv(inputs, width))


class StoredDeep(Block):
    """Sizes kept in a dict of settings, which no int attribute shows."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(2 * width)
        self.settings = {"sizes": [width, width]}
        self.conv = conv(inputs, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.conv(x), self.settings["sizes"], 1)
        return torch.cat([torch.tanh(second), first], 1)


class StoredAbove(Block):
    """The size that a child's call needs is an attribute of its parent."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.hidden = 2 * width
        self.conv, self.cutter = conv(inputs, 2 * width), Cutter()
        self.last = conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cutter(self.conv(x), self.hidden))


class Cutter(nn.Module):
    def forward(self, x: Tensor, hidden: int) -> Tensor:
        return x.view(len(x), 2, hidden // 2, *x.shape[2:]).mean(1)


SIZES: dict[str, Piece] = {
    "padding, tuple attribute": Piece(lambda c, w: Padded(c, w, "tuple")),
    "padding, two attributes": Piece(lambda c, w: Padded(c, w, "numbers")),
    "padding, attribute less x.shape": Piece(lambda c, w: Padded(c, w, "difference")),
    "padding, shapes only": Piece(lambda c, w: Padded(c, w, "shapes")),
    "padding, module": Piece(lambda c, w: Padded(c, w, "module")),
    "padding, zeros beside": Piece(lambda c, w: Padded(c, w, "zeros")),
    "padding, literals": Piece(
        lambda c, w: Padded(c, w, "literals"),
        expected="frozen",
        notes="as many channels go from the sum as from the input, so that only the padded ones must stay",
    ),
    "padding, closure (option A)": Piece(
        OptionA, multiple=2, scale=0.5, expected="frozen", notes="as with literals: the padded channels stay"
    ),
    "flatten, linear, view by literals": Piece(lambda c, w: ThroughVector(c, w, "literal"), expected="frozen"),
    "flatten, linear, view by attributes": Piece(lambda c, w: ThroughVector(c, w, "attributes")),
    "flatten, linear, view by −1": Piece(lambda c, w: ThroughVector(c, w, "rest")),
    "flatten, linear, unflatten": Piece(lambda c, w: ThroughVector(c, w, "module")),
    "grouped view by attributes": Piece(lambda c, w: GroupedView(c, w, "attributes")),
    "grouped view by literals": Piece(lambda c, w: GroupedView(c, w, "literals"), expected="frozen"),
    "grouped view by a literal and −1": Piece(lambda c, w: GroupedView(c, w, "literal and rest")),
    "grouped view by a closure's number": Piece(_closure_view, multiple=2, expected="frozen", prunes=False),
    "asserts its width": Piece(lambda c, w: Written(_asserts, w, channels=c, conv=conv(c, w)), drawn=False),
    "branches on its width": Piece(
        _branches_on_width, expected="frozen", prunes=False, drawn=False, notes="only the proof can tell"
    ),
    "width as a factor": Piece(
        lambda c, w: Written(lambda m, x: m.conv(x) / math.sqrt(x.shape[1]), w, conv=conv(c, w)),
        expected="frozen",
        prunes=False,
        drawn=False,
        notes="the number of channels is a value: another one is another network, as only the proof can tell",
    ),
    "sizes in a dict": Piece(StoredDeep, expected="frozen"),
    "size of the parent": Piece(StoredAbove),
}
