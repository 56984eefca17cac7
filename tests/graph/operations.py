"""Small networks, one a way to treat channels: `EXACT` ones are pruned everywhere, `KEPT` ones keep some channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.between import Case, Held, Stores, case, conv, kept
from torch import Tensor, nn


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def halves(m: nn.Module, x: Tensor) -> Tensor:
    """The first half goes through a convolution, by slices whose bounds are computed."""
    middle = x.shape[1] // 2
    return torch.cat([m.c(x[:, :middle]), x[:, middle:]], 1)


def quarter(m: nn.Module, x: Tensor) -> Tensor:
    """The first quarter goes through a convolution, by a split whose sizes are computed."""
    channels = x.shape[1]
    first, rest = x.split([channels // 4, channels - channels // 4], 1)
    return torch.cat([m.c(first), rest], 1)


def cut(m: nn.Module, x: Tensor) -> Tensor:
    """The first channels go through a convolution, by what another module says are the first."""
    first, rest = m.cut(x)
    return torch.cat([m.c(first), rest], 1)


def zeros_around(m: nn.Module, x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, *m.padding))


def channels_last(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attended(m: nn.Module, x: Tensor) -> Tensor:
    """Every position looks at the others, alike in their channels."""
    q = x.flatten(2)
    return x + torch.bmm(q, torch.bmm(q.transpose(1, 2), q).softmax(2)).view_as(x)


EXACT: dict[str, Case] = {
    "plain": case(lambda m, x: x),
    "residual sum": case(lambda m, x: x + m.c(x), lambda: {"c": conv(8, 8)}),
    "in-place sum": case(lambda m, x: m.c(x).add_(x), lambda: {"c": conv(8, 8)}),
    "sum into a view": case(lambda m, x: (y := m.c(x), y.flatten(2).add_(x.flatten(2)))[0], lambda: {"c": conv(8, 8)}),
    "concatenation": case(lambda m, x: torch.cat([x, m.c(x)], 1), lambda: {"c": conv(8, 4)}, sizes={"c": 4}, after=12),
    "concatenation in space": case(lambda m, x: torch.cat([x, m.c(x)], 2), lambda: {"c": conv(8, 8)}),
    "squeeze and excite": case(
        lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))),
        lambda: {"down": nn.Conv2d(8, 4, 1), "up": nn.Conv2d(4, 8, 1)},
        sizes={"down": 4},
    ),
    "one-channel mask": case(lambda m, x: x * torch.sigmoid(m.c(x)), lambda: {"c": conv(8, 1)}),
    "depthwise": case(lambda m, x: m.c(x), lambda: {"c": conv(8, 8, groups=8)}),
    "depthwise with multiplier": case(lambda m, x: m.c(x), lambda: {"c": conv(8, 16, groups=8)}, after=16),
    "grouped": case(
        lambda m, x: m.c(x),
        lambda: {"c": conv(8, 4, groups=2)},
        sizes={"c": 4},
        pieces={"first": "00001111", "c": "0011"},
        after=4,
    ),
    "transposed": case(
        lambda m, x: m.c(x), lambda: {"c": nn.ConvTranspose2d(8, 4, 2, stride=2)}, sizes={"c": 4}, after=4
    ),
    "transposed, grouped": case(
        lambda m, x: m.c(x),
        lambda: {"c": nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)},
        sizes={"c": 4},
        pieces={"first": "00001111", "c": "0011"},
        after=4,
    ),
    "chunk": case(
        lambda m, x: torch.cat([x.chunk(2, 1)[1], m.c(x.chunk(2, 1)[0])], 1),
        lambda: {"c": conv(4, 6)},
        sizes={"c": 6},
        pieces="00001111",
        after=10,
    ),
    "slices in proportion": case(halves, lambda: {"c": conv(4, 4)}, sizes={"c": 4}, pieces="00001111"),
    "split in proportion": case(quarter, lambda: {"c": conv(2, 2)}, sizes={"c": 2}, pieces="00111111"),
    "shuffle": case(lambda m, x: shuffle(x), pieces="00001111"),
    "shuffle as a call": case(lambda m, x: F.channel_shuffle(x, 2), pieces="00001111"),
    "flatten to linear": case(
        lambda m, x: m.c(x.flatten(1))[:, :, None, None], lambda: {"c": nn.Linear(8 * 64, 4)}, sizes={"c": 4}, after=4
    ),
    "linear without bias": case(
        lambda m, x: x * m.c(x.mean((2, 3)))[:, :, None, None], lambda: {"c": nn.Linear(8, 8, bias=False)}
    ),
    "channels last": case(
        lambda m, x: channels_last(m.c, x), lambda: {"c": nn.Linear(8, 4, bias=False)}, sizes={"c": 4}, after=4
    ),
    "zero padding": case(
        lambda m, x: m.pad(x) + m.c(x),
        lambda: {"pad": Stores(zeros_around, padding=(2, 4)), "c": conv(8, 14)},
        sizes={"c": 2, "c#2": 4},
        after=14,
    ),
    "padding by a literal": case(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)), after=12),
    "pooling": case(lambda m, x: F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(x, 2), 2), 2)),
    "interpolation": case(lambda m, x: F.interpolate(x, scale_factor=2)),
    "dropout": case(lambda m, x: F.dropout(x, 0.5, m.training), draws=True),
    "buffer scale": case(lambda m, x: m.bn(x) * 2 + 1, lambda: {"bn": nn.BatchNorm2d(8, affine=False)}),
    "buffer over channels": case(
        lambda m, x: x * m.held.tensor, lambda: {"held": Held(torch.arange(8.0).view(8, 1, 1))}
    ),
    "prelu": case(lambda m, x: m.act(x - 1), lambda: {"act": nn.PReLU(8)}),
    "flip in space": case(lambda m, x: x.flip(3)),
    "flip of channels": case(lambda m, x: x.flip(1)),
    "roll of rows": case(lambda m, x: x.roll(1, 2)),
    "shared module": case(lambda m, x: m.c(m.c(x)), lambda: {"c": conv(8, 8)}),
    "pixel shuffle": case(lambda m, x: F.pixel_shuffle(m.c(x), 2), lambda: {"c": conv(8, 16)}, sizes={"c": 4}, after=4),
    "pixel unshuffle": case(lambda m, x: F.pixel_unshuffle(x, 2), after=32),
    "gated": case(lambda m, x: F.glu(m.c(x), 1), lambda: {"c": conv(8, 8)}, sizes={"c": 4}, after=4),
    "stack and sum": case(lambda m, x: torch.stack([x, m.c(x)]).sum(0), lambda: {"c": conv(8, 8)}),
    "attention over space": case(attended),
    "layer norm": case(
        lambda m, x: channels_last(m.ln, x), lambda: {"ln": nn.LayerNorm(8)}, mixing="native_layer_norm"
    ),
    "root mean square norm": case(lambda m, x: channels_last(m.rms, x), lambda: {"rms": nn.RMSNorm(8)}, mixing="mean"),
    "group norm": case(
        lambda m, x: m.gn(x), lambda: {"gn": nn.GroupNorm(2, 8)}, pieces="00001111", mixing="native_group_norm"
    ),
    "group norm of one group": case(
        lambda m, x: m.gn(x), lambda: {"gn": nn.GroupNorm(1, 8)}, mixing="native_group_norm"
    ),
    "mean over channels": case(lambda m, x: x - x.mean(1, keepdim=True), mixing="mean"),
    "maximum over channels": case(lambda m, x: x - x.amax(1, keepdim=True), mixing="amax"),
    "softmax over channels": case(lambda m, x: x.softmax(1), mixing="_softmax"),
    "sum over everything": case(lambda m, x: x / (1 + x.sum()), mixing="sum"),
    "slice by a stored number": case(
        cut,
        lambda: {"cut": Stores(lambda m, x: (x[:, : m.n], x[:, m.n :]), n=3), "c": conv(3, 3)},
        sizes={"first": 3, "first#2": 5, "c": 3},
    ),
    "split by stored sizes": case(
        cut,
        lambda: {"cut": Stores(lambda m, x: x.split(m.sizes, 1), sizes=(3, 5)), "c": conv(3, 3)},
        sizes={"first": 3, "first#2": 5, "c": 3},
    ),
}

KEPT: dict[str, Case] = {
    "slice by a number": kept(
        lambda m, x: torch.cat([m.c(x[:, :4]), x[:, 4:]], 1),
        lambda: {"c": conv(4, 4)},
        reason="is given a size that is written as a number",
        op="slice",
        sizes={"c": 4},
    ),
    "split by numbers": kept(
        lambda m, x: torch.cat([m.c(x.split([2, 6], 1)[0]), x.split([2, 6], 1)[1]], 1),
        lambda: {"c": conv(2, 2)},
        reason="is given a size that is written as a number",
        op="split_with_sizes",
        sizes={"c": 2},
    ),
    "split by numbers without a common divisor": kept(
        lambda m, x: torch.cat([m.c(x.split([3, 5], 1)[0]), x.split([3, 5], 1)[1]], 1),
        lambda: {"c": conv(3, 3)},
        reason="its 8 channels are all coupled with one another",
        op="split_with_sizes",
        sizes={"c": 3},
    ),
    "half of it is not read": kept(lambda m, x: x[:, :4], reason="no layer consumes it", after=4),
    "one channel": kept(lambda m, x: x * x[:, 0].unsqueeze(1), reason="cuts it at a fixed position", op="select"),
    "made by a number": kept(
        lambda m, x: x * torch.ones(8, 1, 1), reason="is given a size that is written as a number", op="mul"
    ),
    "numbers along channels": kept(
        lambda m, x: x * torch.arange(x.shape[1]).view(-1, 1, 1), reason="meets a tensor of fixed size", op="mul"
    ),
    "zeros beside, by a number": Case(
        case(
            lambda m, x: torch.cat([x, torch.zeros(len(x), 2, *x.shape[2:])], 1) + m.c(x),
            lambda: {"c": conv(8, 10)},
            after=10,
        ).build,
        {"first": 8, "last": 6},
        reason="meets positions whose number is fixed",
        op="aten.add",
    ),
    "cut by a negative padding": kept(
        lambda m, x: F.pad(x, (0, 0, 0, 0, -1, 0)),
        reason="cuts or pads it by a fixed number",
        op="constant_pad_nd",
        after=7,
    ),
    "sorted": kept(lambda m, x: x.sort(1).values, reason="has no rule for channels", op="sort"),
    "picked by numbers": kept(
        lambda m, x: x[:, [0, 2, 4, 6]] + x[:, [1, 3, 5, 7]], reason="picks channels by number", op="index", after=4
    ),
    "selected by numbers": kept(
        lambda m, x: x.index_select(1, m.held.tensor),
        lambda: {"held": Held(torch.tensor([0, 5, 2]))},
        reason="picks channels by number",
        op="index_select",
        after=3,
    ),
    "written by numbers": kept(
        lambda m, x: x.clone().index_put_((torch.tensor([0, 1]), torch.tensor([2, 3])), x.new_zeros(())),
        reason="writes at numbered positions",
        op="index_put_",
    ),
    "each met with each": kept(lambda m, x: x + x.roll(1, 1), reason="its 8 channels are all coupled with one another"),
    "positions": Case(
        case(
            lambda m, x: F.grid_sample(x, m.c(x).tanh().permute(0, 2, 3, 1), align_corners=False),
            lambda: {"c": conv(8, 2)},
        ).build,
        {"first": 8, "last": 6},
        reason="reads positions from it",
        op="aten.grid_sampler_2d",
    ),
    "over channels, fewer": kept(
        lambda m, x: x[:, :6] * m.c(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(3),
        lambda: {"c": nn.Conv1d(1, 1, 3)},
        reason="runs over channels and changes their number",
        op="convolution",
        after=6,
    ),
    "root of a length": Case(
        case(
            lambda m, x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3).transpose(1, 2).view_as(x)
        ).build,
        {"last": 6},
        reason="attention divides by the root of the length of its queries",
        op="scaled_dot_product_attention",
    ),
}
