"""Blocks that cut the channels by position: chunk, split, slices, and writes into slices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, conv, conv_norm, even
from torch import Tensor, nn


class HalfThrough(Block):
    """One half goes through a convolution, the other one around it (CSP)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs // 2 + width)
        self.conv = conv_norm(inputs // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        around, through = x.chunk(2, 1)
        return torch.cat([around, self.conv(through)], 1)


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv_norm(width, width), conv_norm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(Block):
    """YOLOv8's: the list of both halves grows by what each bottleneck makes of its last entry."""

    def __init__(self, inputs: int, width: int, by_attribute: bool = False) -> None:
        super().__init__(width)
        self.c = max(2, width // 2)
        self.by_attribute = by_attribute
        self.cv1, self.cv2 = conv_norm(inputs, 2 * self.c, 1), conv_norm(4 * self.c, width, 1)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1)) if self.by_attribute else list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(Block):
    """YOLOv5's CSP with two convolutions in place of a cut."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.cv1, self.cv2 = conv_norm(inputs, width, 1), conv_norm(inputs, width, 1)
        self.m, self.cv3 = Bottleneck(width), conv_norm(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Res2Net(Block):
    def __init__(self, inputs: int, width: int, scale: int = 4) -> None:
        super().__init__(inputs)
        self.width, self.scale = max(2, width // scale), scale
        self.conv1, self.bn1 = conv(inputs, self.width * scale, 1), nn.BatchNorm2d(self.width * scale)
        self.convs = nn.ModuleList(conv(self.width, self.width) for _ in range(scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.width) for _ in range(scale - 1))
        self.conv3 = conv(self.width * scale, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(F.silu(self.bn1(self.conv1(x))), self.width, 1)
        outs: list[Tensor] = []
        for i, (step, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            outs.append(F.silu(norm(step(pieces[i] + outs[-1] if outs else pieces[i]))))
        outs.append(pieces[-1])
        return F.silu(x + self.conv3(torch.cat(outs, 1)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleV2(Block):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        half = inputs // 2
        self.branch = nn.Sequential(
            conv_norm(half, width, 1),
            conv(width, width, groups=width, bias=False),
            nn.BatchNorm2d(width),
            conv_norm(width, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((first, self.branch(second)), dim=1), 2)


class ShuffleV1(Block):
    """Grouped 1 × 1, shuffle, depthwise, grouped 1 × 1, sum."""

    def __init__(self, inputs: int, width: int, groups: int = 2) -> None:
        super().__init__(inputs)
        middle = groups * max(2, width // groups)
        self.groups = groups
        self.squeeze, self.bn1 = conv(inputs, middle, 1, groups=groups, bias=False), nn.BatchNorm2d(middle)
        self.depth, self.bn2 = conv(middle, middle, groups=middle, bias=False), nn.BatchNorm2d(middle)
        self.expand, self.bn3 = conv(middle, inputs, 1, groups=groups, bias=False), nn.BatchNorm2d(inputs)

    def forward(self, x: Tensor) -> Tensor:
        y = channel_shuffle(F.silu(self.bn1(self.squeeze(x))), self.groups)
        return F.silu(x + self.bn3(self.expand(self.bn2(self.depth(y)))))


class Ghost(Block):
    """Half of the channels by a convolution, as many by a cheap one; cut to an odd number."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(even(width) + 1)
        self.oup = even(width) + 1
        made = (self.oup + 1) // 2
        self.primary, self.cheap = conv_norm(inputs, made, 1), conv_norm(made, made, groups=made)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        x2 = self.cheap(x1)
        return torch.cat([x1, x2], dim=1)[:, : self.oup, :, :]


class PartialSplit(Block):
    """FasterNet's in training: only the first quarter is convolved."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.dim_conv = inputs // 4
        self.dim_untouched = inputs - self.dim_conv
        self.partial_conv = conv(self.dim_conv, self.dim_conv, bias=False)
        self.mlp = nn.Sequential(conv_norm(inputs, 2 * width, 1), conv(2 * width, inputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, [self.dim_conv, self.dim_untouched], dim=1)
        return x + self.mlp(torch.cat((self.partial_conv(x1), x2), 1))


class PartialSlice(Block):
    """FasterNet's at inference: the quarter is written into a slice."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.dim_conv = inputs // 4
        self.partial_conv = conv(self.dim_conv, self.dim_conv, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = x.clone()
        out[:, : self.dim_conv, :, :] = self.partial_conv(x[:, : self.dim_conv, :, :])
        return out


class InceptionDepthwise(Block):
    """InceptionNeXt's mixer: four parts by a stored tuple of sizes, three with kernels of their own."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        part = inputs // 4
        self.square = conv(part, part, groups=part)
        self.wide = nn.Conv2d(part, part, (1, 5), padding=(0, 2), groups=part)
        self.high = nn.Conv2d(part, part, (5, 1), padding=(2, 0), groups=part)
        self.split_indexes = (inputs - 3 * part, part, part, part)

    def forward(self, x: Tensor) -> Tensor:
        same, square, wide, high = torch.split(x, self.split_indexes, dim=1)
        return torch.cat((same, self.square(square), self.wide(wide), self.high(high)), dim=1)


class MixedConv(Block):
    """MixNet's: parts of unequal sizes, stored in a list, each with a kernel of its own."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(2 * width)
        self.splits = [inputs // 4, inputs - inputs // 4]
        self.convs = nn.ModuleList(conv(n, width, 2 * i + 1) for i, n in enumerate(self.splits))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([c(part) for part, c in zip(torch.split(x, self.splits, 1), self.convs, strict=True)], 1)


class Dense(Block):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs + 3 * max(2, width // 2))
        growth = max(2, width // 2)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(inputs + i * growth), nn.SiLU(), conv(inputs + i * growth, growth))
            for i in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class LightMaxout(Block):
    """LightCNN's max-feature-map: the larger one of two halves."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.out_channels = width
        self.filter = conv(inputs, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.split(self.filter(x), self.out_channels, 1)
        return torch.max(out[0], out[1])


def _write_into(m: Written, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, : m.half] += m.other(x)
    y[:, m.half :].mul_(2.0)
    return y


def _halves_of_attribute(m: Written, x: Tensor) -> Tensor:
    y = m.conv(x)
    return y[:, : m.channels // 2] * torch.sigmoid(y[:, m.channels // 2 :])


def _closure(inputs: int, width: int) -> nn.Module:
    half = inputs // 2
    return Written(lambda m, x: torch.cat([x[:, half:], m.conv(x[:, :half])], 1), inputs, conv=conv(half, half))


CUTS: dict[str, Piece] = {
    "chunk (CSP)": Piece(HalfThrough, multiple=2),
    "chunk in a list (C2f)": Piece(C2f),
    "split by an attribute in a list (C2f)": Piece(lambda c, w: C2f(c, w, by_attribute=True)),
    "two convolutions (C3)": Piece(C3),
    "split by an attribute (Res2Net)": Piece(Res2Net),
    "ShuffleNetV2 unit": Piece(ShuffleV2, multiple=2),
    "ShuffleNetV1 unit, 2 groups": Piece(ShuffleV1, multiple=2),
    "ShuffleNetV1 unit, 3 groups": Piece(lambda c, w: ShuffleV1(c, 2 * w, groups=3), multiple=3),
    "cut at an attribute (GhostNet)": Piece(Ghost),
    "split by two attributes (PartialConv)": Piece(PartialSplit, multiple=4),
    "write into a slice (PartialConv)": Piece(PartialSlice, multiple=4),
    "split by a tuple (InceptionNeXt)": Piece(InceptionDepthwise, multiple=4),
    "split by a list (MixNet)": Piece(MixedConv, multiple=4),
    "dense block": Piece(Dense),
    "max-feature-map (LightCNN)": Piece(LightMaxout),
    "halves swapped": Piece(lambda c, w: Written(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), c), multiple=2),
    "halves by x.shape": Piece(
        lambda c, w: Written(
            lambda m, x: torch.cat([x[:, x.shape[1] // 2 :], m.conv(x[:, : x.shape[1] // 2])], 1),
            c // 2 + w,
            conv=conv(c // 2, w),
        ),
        multiple=2,
    ),
    "halves of an attribute": Piece(
        lambda c, w: Written(_halves_of_attribute, w, channels=2 * w, conv=conv(c, 2 * w)),
        notes="the number in the call is half of the one that is stored",
    ),
    "halves by narrow": Piece(
        lambda c, w: Written(
            lambda m, x: m.conv(x.narrow(1, 0, m.half)) + x.narrow(1, m.half, m.half),
            c // 2,
            half=c // 2,
            conv=conv(c // 2, c // 2),
        ),
        multiple=2,
    ),
    "thirds by tensor_split": Piece(
        lambda c, w: Written(lambda m, x: sum(x.tensor_split(3, 1)), c // 3),
        multiple=3,  # type: ignore[arg-type]
    ),
    "slice from the end": Piece(
        lambda c, w: Written(
            lambda m, x: torch.cat([m.conv(x), x[:, -m.last :]], 1), w + c // 2, last=c // 2, conv=conv(c, w)
        ),
        multiple=2,
    ),
    "split by literals": Piece(
        lambda c, w: Written(
            lambda m, x: torch.cat([m.conv(x).split([4, 8], 1)[1], m.conv(x).split([4, 8], 1)[0]], 1),
            12,
            conv=conv(c, 12),
        ),
        expected="frozen",
    ),
    "cut at a literal": Piece(
        lambda c, w: Written(lambda m, x: torch.cat([m.conv(x)[:, 4:], x], 1), 4 + c, conv=conv(c, 8)),
        expected="frozen",
    ),
    "halves at a closure's number": Piece(_closure, multiple=2, expected="frozen", prunes=False),
    "first channel as a mask": Piece(
        lambda c, w: Written(
            lambda m, x: x * torch.sigmoid(m.conv(x)[:, 0:1]) * torch.sigmoid(m.conv(x)[:, 1]).unsqueeze(1),
            c,
            conv=conv(c, 2),
        ),
        expected="frozen",
    ),
    "gated linear unit": Piece(lambda c, w: Written(lambda m, x: F.glu(m.conv(x), 1), w, conv=conv(c, 2 * w))),
    "simple gate (NAFNet)": Piece(
        lambda c, w: Written(lambda m, x: (y := m.conv(x).chunk(2, 1))[0] * y[1], w, conv=conv(c, 2 * w))
    ),
    "maxout by view": Piece(
        lambda c, w: Written(lambda m, x: x.view(x.shape[0], -1, 2, *x.shape[2:]).amax(2), c // 2), multiple=2
    ),
    "sum over groups": Piece(
        lambda c, w: Written(lambda m, x: x.view(x.shape[0], m.groups, -1, *x.shape[2:]).sum(1), c // 2, groups=2),
        multiple=2,
    ),
    "writes into slices": Piece(
        lambda c, w: Written(_write_into, 2 * w, half=w, conv=conv(c, 2 * w), other=conv(c, w)),
        notes="the two halves may be pruned apart if the attribute follows the first",
    ),
}
