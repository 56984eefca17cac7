"""Blocks that lay channels out anew: shuffles, space to depth, padding, flattening, and sizes written into forward."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, conv, conv_norm
from torch import Tensor, nn


def _groups_first(m: Written, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, m.groups, c // m.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def _groups_last(m: Written, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c // m.groups, m.groups, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)


def _groups_by_rest(m: Written, x: Tensor) -> Tensor:
    n, _, h, w = x.size()
    x = x.view(n, m.groups, -1, h * w)
    return x.permute(0, 2, 1, 3).contiguous().view(n, -1, h, w)


class Focus(Block):
    """YOLOv5's: every second position of every second row, as four times the channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.conv = conv_norm(4 * inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.conv(torch.cat(parts, 1))


def _space_to_depth(m: Written, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, h // m.bs, m.bs, w // m.bs, m.bs)
    x = x.permute(0, 3, 5, 1, 2, 4).contiguous()
    return x.view(n, c * m.bs * m.bs, h // m.bs, w // m.bs)


def _depth_to_space(m: Written, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, m.bs, m.bs, c // (m.bs**2), h, w)
    x = x.permute(0, 3, 4, 1, 5, 2).contiguous()
    return x.view(n, c // (m.bs**2), h * m.bs, w * m.bs)


class Involution(Block):
    """Kernels made at every position, over unfolded neighbourhoods."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.groups = 2
        self.reduce, self.span = conv_norm(inputs, width, 1), conv(width, 9 * self.groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = self.span(self.reduce(x)).view(n, self.groups, 1, 9, h, w)
        patches = F.unfold(x, 3, padding=1).view(n, self.groups, c // self.groups, 9, h, w)
        return (weight * patches).sum(3).view(n, c, h, w)


def _windows(m: Written, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    s = m.window
    x = x.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, s * s, c)
    x = m.mlp(x)
    x = x.view(n, h // s, w // s, s, s, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, -1)
    return x.permute(0, 3, 1, 2)


class Einsum(Block):
    """A 1 × 1 convolution as a sum over indices."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.weight = nn.Parameter(torch.randn(width, inputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,oc->nohw", x, self.weight) + self.bias


class MatmulWeight(Block):
    """A 1 × 1 convolution as a product of its own weight with the flattened map."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.weight = nn.Parameter(torch.randn(width, inputs) / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return (self.weight @ x.flatten(2)).view(n, self.weight.shape[0], h, w)


class CoordConv(Block):
    """Two maps of positions, made in forward, beside the channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.conv = conv(inputs + 2, width)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype).view(1, 1, 1, w).expand(n, 1, h, w)
        return self.conv(torch.cat([x, rows, columns], 1))


LAYOUTS: dict[str, Piece] = {
    "shuffle, groups first": Piece(lambda c, w: Written(_groups_first, c, groups=2), multiple=2),
    "shuffle, 3 groups": Piece(lambda c, w: Written(_groups_first, c, groups=3), multiple=3),
    "shuffle, groups last": Piece(lambda c, w: Written(_groups_last, c, groups=2), multiple=2),
    "shuffle, the rest by −1": Piece(lambda c, w: Written(_groups_by_rest, c, groups=2), multiple=2),
    "shuffle, module": Piece(
        lambda c, w: Written(lambda m, x: m.shuffle(x), c, shuffle=nn.ChannelShuffle(2)), multiple=2
    ),
    "pixel shuffle": Piece(
        lambda c, w: Written(lambda m, x: m.up(m.conv(x)), w, conv=conv(c, 4 * w), up=nn.PixelShuffle(2)), scale=2
    ),
    "pixel shuffle of the input": Piece(
        lambda c, w: Written(lambda m, x: F.pixel_shuffle(x, 2), c // 4), multiple=4, scale=2
    ),
    "depth to space by view": Piece(lambda c, w: Written(_depth_to_space, c // 4, bs=2), multiple=4, scale=2),
    "pixel unshuffle": Piece(
        lambda c, w: Written(lambda m, x: m.conv(m.down(x)), w, conv=conv(4 * c, w), down=nn.PixelUnshuffle(2)),
        scale=0.5,
    ),
    "space to depth by view": Piece(
        lambda c, w: Written(lambda m, x: m.conv(_space_to_depth(m, x)), w, bs=2, conv=conv(4 * c, w)), scale=0.5
    ),
    "space to depth by slices (Focus)": Piece(Focus, scale=0.5),
    "unfold (involution)": Piece(
        Involution, multiple=2, expected="frozen", notes="what makes kernels has positions, no channels"
    ),
    "windows, channels last": Piece(
        lambda c, w: Written(
            _windows, w, window=2, mlp=nn.Sequential(nn.Linear(c, 2 * w), nn.GELU(), nn.Linear(2 * w, w))
        )
    ),
    "movedim and linear": Piece(
        lambda c, w: Written(lambda m, x: m.linear(x.movedim(1, -1)).movedim(-1, 1), w, linear=nn.Linear(c, w))
    ),
    "swapaxes and linear": Piece(
        lambda c, w: Written(
            lambda m, x: m.linear(x.flatten(2).mT).swapaxes(1, 2).unflatten(2, x.shape[2:]), w, linear=nn.Linear(c, w)
        )
    ),
    "einsum with a weight": Piece(Einsum),
    "matmul with a weight": Piece(MatmulWeight),
    "positions beside channels": Piece(CoordConv, notes="the input's channels before the fixed ones"),
    "channels as depth": Piece(
        lambda c, w: Written(
            lambda m, x: m.conv(x.unsqueeze(1)).amax(1), c, conv=nn.Conv3d(1, w, (1, 3, 3), padding=(0, 1, 1))
        ),
        expected="frozen",
        notes="channels are an axis of space to a convolution that mixes none of them",
    ),
}
