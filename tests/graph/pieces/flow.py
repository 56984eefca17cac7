"""Blocks whose Python looks at values, and the other ways of changing the size of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, conv
from torch import Tensor, nn


class Valued(Block):
    """Python needs the values of stored numbers, which no channel reaches."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.gate = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("steps", torch.tensor(2))
        self.register_buffer("flags", torch.tensor([1.0, 0.0, 1.0]))
        self.conv, self.other = conv(inputs, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) * self.gate if self.gate > 0 else -self.conv(x)
        for _ in range(int(self.steps)):
            x = F.silu(self.other(x))
        for flag in self.flags.tolist():
            x = x + flag
        return x * self.gate.item()


def _guarded(m: Written, x: Tensor) -> Tensor:
    if torch.isnan(x).any():
        raise ValueError("not a number")
    return m.conv(x)


def _decided(m: Written, x: Tensor) -> Tensor:
    if x.mean() > 0.01:  # not 0, which a normalised map's mean is but for rounding
        return m.conv(x)
    return m.other(x)


def _decided_later(m: Written, x: Tensor) -> Tensor:
    y = m.conv(x)
    return y if y.abs().mean() > 0.01 else m.other(x)


def _resized(m: Written, x: Tensor) -> Tensor:
    y = F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return m.conv(torch.cat([x, y, F.adaptive_avg_pool2d(x, 1).expand_as(x)], 1))


FLOW: dict[str, Piece] = {
    "values of stored numbers": Piece(Valued),
    "a guard against NaN": Piece(
        lambda c, w: Written(_guarded, w, conv=conv(c, w)),
        expected="frozen",
        prunes=False,
        notes="Python reads one bit of all channels",
    ),
    "decided by a mean": Piece(
        lambda c, w: Written(_decided, w, conv=conv(c, w), other=conv(c, w)), expected="frozen", prunes=False
    ),
    "decided by a mean of a layer's own": Piece(
        lambda c, w: Written(_decided_later, w, conv=conv(c, w), other=conv(c, w)),
        expected="frozen",
        notes="the branch not taken on the example: its weights must follow the input's width, or the input stay",
        prunes=False,
    ),
    "scaled by a value": Piece(
        lambda c, w: Written(lambda m, x: m.conv(x) / (1 + x.abs().max().item()), w, conv=conv(c, w)),
        expected="frozen",
        prunes=False,
    ),
    "largest value as a tensor": Piece(
        lambda c, w: Written(lambda m, x: m.conv(x) / (1 + x.detach().abs().max()), w, conv=conv(c, w)),
        notes="over the kept channels",
    ),
    "bilinear up": Piece(
        lambda c, w: Written(
            lambda m, x: F.interpolate(m.conv(x), scale_factor=2, mode="bilinear", align_corners=True),
            w,
            conv=conv(c, w),
        ),
        scale=2,
    ),
    "bicubic up, module": Piece(
        lambda c, w: Written(lambda m, x: m.up(x), c, up=nn.Upsample(scale_factor=2, mode="bicubic")), scale=2
    ),
    "pooled and back": Piece(lambda c, w: Written(_resized, w, conv=conv(3 * c, w))),
    "poolings in a sum": Piece(
        lambda c, w: Written(
            lambda m, x: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1) + F.lp_pool2d(x.abs() + 0.1, 2, 2), c
        ),
        scale=0.5,
    ),
    "max pool and unpool": Piece(
        lambda c, w: Written(lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 2, 2, return_indices=True), 2, 2) + x, c)
    ),
    "grid sample": Piece(
        lambda c, w: Written(
            lambda m, x: F.grid_sample(x, torch.tanh(m.grid(x)).permute(0, 2, 3, 1), align_corners=False),
            c,
            grid=conv(c, 2),
        ),
        notes="two channels of the grid are coordinates and stay",
        expected="frozen",
    ),
    "nothing at all": Piece(lambda c, w: Written(lambda m, x: x, c)),
}
