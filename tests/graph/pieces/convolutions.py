"""Blocks around convolutions: grouped, transposed, with computed, shared or stored weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, alone, conv, conv_norm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Basic(Block):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.conv1, self.bn1 = conv(inputs, width, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, inputs, bias=False), nn.BatchNorm2d(inputs)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.silu(self.bn1(self.conv1(x)))))
        out += x
        return F.silu(out)


class Grouped(Block):
    """A ResNeXt bottleneck, and the grouped convolution straight on the input."""

    def __init__(self, inputs: int, width: int, groups: int) -> None:
        middle = groups * max(2, width // groups)
        super().__init__(inputs)
        self.direct = conv(inputs, middle, groups=groups)
        self.grouped, self.bn = conv(middle, middle, groups=groups, bias=False), nn.BatchNorm2d(middle)
        self.expand = conv(middle, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(F.silu(self.bn(self.grouped(F.silu(self.direct(x))))))


class InvertedResidual(Block):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, 2 * width, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU6(inplace=True),
            conv(2 * width, 2 * width, groups=2 * width, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.Hardswish(),
            nn.Conv2d(2 * width, inputs, 1, bias=False),
            nn.BatchNorm2d(inputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class RepVGG(Block):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.dense = nn.Sequential(conv(inputs, inputs, bias=False), nn.BatchNorm2d(inputs))
        self.point = nn.Sequential(conv(inputs, inputs, 1, bias=False), nn.BatchNorm2d(inputs))
        self.identity = nn.BatchNorm2d(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.dense(x) + self.point(x) + self.identity(x))


class SelectiveKernel(Block):
    """Branches stacked, and summed with weights that a softmax over branches makes."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.paths = nn.ModuleList([conv_norm(inputs, width), conv_norm(inputs, width, 5)])
        self.reduce, self.select = conv_norm(width, 4, 1), conv(4, 2 * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([path(x) for path in self.paths], dim=1)
        attention = self.select(F.silu(self.reduce(y.sum(1).mean((2, 3), keepdim=True))))
        n, c, h, w = attention.shape
        attention = torch.softmax(attention.view(n, 2, c // 2, h, w), dim=1)
        return torch.sum(y * attention, dim=1)


class SplitAttention(Block):
    """ResNeSt's: a grouped convolution per radix, summed with weights by softmax over the radix."""

    def __init__(self, inputs: int, width: int, groups: int = 1) -> None:
        width = groups * max(2, width // groups)
        super().__init__(width)
        self.radix, self.cardinality = 2, groups
        self.conv = conv(inputs, 2 * width, groups=2 * groups, bias=False)
        self.bn0 = nn.BatchNorm2d(2 * width)
        self.fc1, self.bn1 = nn.Conv2d(width, 4 * groups, 1, groups=groups), nn.BatchNorm2d(4 * groups)
        self.fc2 = nn.Conv2d(4 * groups, 2 * width, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn0(self.conv(x)))
        n, rc, h, w = x.shape
        x = x.reshape(n, self.radix, rc // self.radix, h, w)
        attention = self.fc2(F.silu(self.bn1(self.fc1(x.sum(1).mean((2, 3), keepdim=True)))))
        attention = attention.view(n, self.cardinality, self.radix, -1).transpose(1, 2)
        attention = torch.softmax(attention, dim=1).reshape(n, -1, 1, 1)
        return (x * attention.reshape(n, self.radix, rc // self.radix, 1, 1)).sum(dim=1)


def _transposed(groups: int):
    def build(inputs: int, width: int) -> nn.Module:
        outputs = groups * max(2, width // groups)
        return alone(nn.ConvTranspose2d(inputs, outputs, 2, stride=2, groups=groups), outputs)

    return build


CONVOLUTIONS: dict[str, Piece] = {
    "convolution": Piece(lambda c, w: alone(conv_norm(c, w), w)),
    "strided convolution": Piece(lambda c, w: alone(nn.Conv2d(c, w, 3, stride=2, padding=1), w), scale=0.5),
    "dilated, circular": Piece(lambda c, w: alone(nn.Conv2d(c, w, 3, padding=1, padding_mode="circular"), w)),
    "same padding": Piece(lambda c, w: alone(nn.Conv2d(c, w, 3, padding="same", dilation=2), w)),
    "residual block": Piece(Basic),
    "inverted residual": Piece(InvertedResidual),
    "three branches (RepVGG)": Piece(RepVGG),
    "2 groups": Piece(lambda c, w: Grouped(c, w, 2), multiple=2),
    "3 groups": Piece(lambda c, w: Grouped(c, w, 3), multiple=3),
    "4 groups": Piece(lambda c, w: Grouped(c, w, 4), multiple=4),
    "groups of two channels": Piece(
        lambda c, w: Written(lambda m, x: m.conv(x), c, conv=conv(c, c, groups=c // 2)),
        multiple=2,
        notes="either whole groups go, or one channel of every group",
    ),
    "groups of two channels, four out": Piece(
        lambda c, w: Written(lambda m, x: m.conv(x), 2 * c, conv=conv(c, 2 * c, groups=c // 2)), multiple=2
    ),
    "2 groups before 4 groups": Piece(
        lambda c, w: Written(lambda m, x: m.b(F.silu(m.a(x))), c, a=conv(c, c, groups=2), b=conv(c, c, groups=4)),
        multiple=4,
    ),
    "depthwise": Piece(lambda c, w: alone(conv(c, c, groups=c), c)),
    "depthwise with a multiplier": Piece(lambda c, w: alone(conv(c, 3 * c, groups=c), 3 * c)),
    "depthwise with a multiplier, and back": Piece(
        lambda c, w: Written(
            lambda m, x: m.back(m.up(x)), c, up=conv(c, 2 * c, groups=c), back=conv(2 * c, c, groups=c)
        )
    ),
    "transposed": Piece(_transposed(1), scale=2),
    "transposed, 2 groups": Piece(_transposed(2), multiple=2, scale=2),
    "transposed depthwise": Piece(
        lambda c, w: alone(nn.ConvTranspose2d(c, c, 4, stride=2, padding=1, groups=c, bias=False), c), scale=2
    ),
    "selective kernel": Piece(SelectiveKernel),
    "split attention": Piece(SplitAttention, multiple=2),
    "split attention, 2 groups": Piece(lambda c, w: SplitAttention(c, w, groups=2), multiple=4),
    "checkpointed": Piece(
        lambda c, w: Written(lambda m, x: checkpoint(m.conv, x, use_reentrant=False), w, conv=conv_norm(c, w))
    ),
    "1d over the flattened map": Piece(
        lambda c, w: Written(
            lambda m, x: m.conv(x.flatten(2)).unflatten(2, x.shape[2:]), w, conv=nn.Conv1d(c, w, 3, padding=1)
        )
    ),
    "3d over a frame": Piece(
        lambda c, w: Written(
            lambda m, x: m.conv(torch.stack([x, -x], 2)).mean(2), w, conv=nn.Conv3d(c, w, 3, padding=1)
        )
    ),
}
