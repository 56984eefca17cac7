"""Blocks that repeat, reorder or choose channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Piece, Written, conv
from torch import nn


def _stored_order(inputs: int, width: int) -> nn.Module:
    block = Written(lambda m, x: x.index_select(1, m.order), inputs)
    block.register_buffer("order", torch.randperm(inputs))
    return block


def _stored_choice(inputs: int, width: int) -> nn.Module:
    block = Written(lambda m, x: torch.cat([x[:, m.chosen], m.conv(x)], 1), (inputs + 1) // 2 + width)
    block.register_buffer("chosen", torch.arange(0, inputs, 2))
    block.conv = conv(inputs, width)
    return block


COPIES: dict[str, Piece] = {
    "every second channel": Piece(
        lambda c, w: Written(
            lambda m, x: torch.cat([m.conv(x[:, ::2]), x[:, 1::2]], 1), w + c // 2, conv=conv(c // 2, w)
        ),
        multiple=2,
    ),
    "flip of channels": Piece(lambda c, w: Written(lambda m, x: m.conv(x.flip(1)) + x, c, conv=conv(c, c))),
    "roll of channels": Piece(
        lambda c, w: Written(lambda m, x: torch.cat([torch.roll(x, 1, 1), m.conv(x)], 1), c + w, conv=conv(c, w)),
        expected="frozen",
        prunes=False,
    ),
    "order in a buffer": Piece(_stored_order, expected="frozen", prunes=False),
    "choice in a buffer": Piece(_stored_choice, expected="frozen", prunes=False),
    "repeat of channels": Piece(lambda c, w: Written(lambda m, x: x.repeat(1, 2, 1, 1), 2 * c)),
    "tile of channels": Piece(
        lambda c, w: Written(lambda m, x: m.conv(torch.tile(x, (1, 3, 1, 1))), w, conv=conv(3 * c, w))
    ),
    "repeat_interleave of channels": Piece(lambda c, w: Written(lambda m, x: x.repeat_interleave(2, 1), 2 * c)),
    "expand and reshape": Piece(
        lambda c, w: Written(
            lambda m, x: (
                x[:, :, None].expand(-1, -1, m.times, -1, -1).reshape(len(x), x.shape[1] * m.times, *x.shape[2:])
            ),
            2 * c,
            times=2,
        )
    ),
    "with itself (CReLU)": Piece(lambda c, w: Written(lambda m, x: F.relu(torch.cat([x, -x], 1)), 2 * c)),
    "three times itself": Piece(
        lambda c, w: Written(lambda m, x: m.conv(torch.cat([x, x, x], 1)), w, conv=conv(3 * c, w))
    ),
    "stack and unbind": Piece(
        lambda c, w: Written(
            lambda m, x: (y := torch.stack([m.a(x), m.b(x)], 1).unbind(1))[0] * torch.tanh(y[1]),
            w,
            a=conv(c, w),
            b=conv(c, w),
        )
    ),
}
