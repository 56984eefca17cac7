"""Small networks made of the pieces that detectors, segmenters and hybrids are made of: one factory a piece.

A factory returns the network and its example inputs. Widths are written the way such code writes them: kept in
attributes, in slices, in views and in closures.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...]]


def image(channels: int = 3, side: int = 32) -> tuple[Tensor, ...]:
    return (torch.rand(2, channels, side, side),)


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.SiLU(inplace=True),
    )


class Classifier(nn.Module):
    """A stem, one piece, and a linear head over the mean: what most pieces are tried in."""

    def __init__(self, piece: nn.Module, c_in: int = 16, c_out: int = 16) -> None:
        super().__init__()
        self.stem = conv(3, c_in, 3, 2)
        self.piece = piece
        self.head = nn.Linear(c_out, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.piece(self.stem(x)).mean((2, 3)))


# --- detectors ---


class Bottleneck(nn.Module):
    def __init__(self, c_in: int, c_out: int, shortcut: bool = True, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = conv(c_in, hidden)
        self.cv2 = conv(hidden, c_out)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """Halves by chunk; each bottleneck goes on from the last one's output, and all of them are joined."""

    def __init__(self, c_in: int, c_out: int, n: int = 2) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = conv(c_in, 2 * hidden, 1)
        self.cv2 = conv((2 + n) * hidden, c_out, 1)
        self.m = nn.ModuleList(Bottleneck(hidden, hidden, expansion=1.0) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class CspSplit(nn.Module):
    """A cross-stage block that splits by sizes which it stores."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.sizes = [c_out // 4, c_out - c_out // 4]
        self.expand = conv(c_in, c_out, 1)
        self.blocks = nn.Sequential(*(Bottleneck(self.sizes[1], self.sizes[1]) for _ in range(2)))
        self.fuse = conv(c_out, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.expand(x), self.sizes, dim=1)
        return self.fuse(torch.cat((left, self.blocks(right)), dim=1))


class C3(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1, self.cv2 = conv(c_in, hidden, 1), conv(c_in, hidden, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, expansion=1.0) for _ in range(2)))
        self.cv3 = conv(2 * hidden, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Sppf(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(c_in, c_in // 2, 1), conv(c_in // 2 * 4, c_out, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        for _ in range(3):
            y.append(self.pool(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Elan(nn.Module):
    """Keeps the output of every second convolution of a row, newest first."""

    def __init__(self, c_in: int, hidden: int, c_out: int) -> None:
        super().__init__()
        self.left, self.right = conv(c_in, hidden, 1), conv(c_in, hidden, 1)
        self.row = nn.ModuleList(conv(hidden, hidden) for _ in range(4))
        self.join = conv(4 * hidden, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.left(x), self.right(x)]
        y = kept[-1]
        for number, layer in enumerate(self.row):
            y = layer(y)
            if number % 2:
                kept.append(y)
        return self.join(torch.cat(kept[::-1], 1))


class DetectHead(nn.Module):
    """Boxes and classes of every scale, flattened and joined; a distribution over bins becomes a distance."""

    def __init__(self, widths: tuple[int, ...], classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.outputs = classes + 4 * bins
        self.box = nn.ModuleList(nn.Sequential(conv(w, 16), nn.Conv2d(16, 4 * bins, 1)) for w in widths)
        self.cls = nn.ModuleList(nn.Sequential(conv(w, 16), nn.Conv2d(16, classes, 1)) for w in widths)
        self.register_buffer("project", torch.arange(bins, dtype=torch.float32))

    def forward(self, features: list[Tensor]) -> Tensor:
        batch = features[0].shape[0]
        scales = [torch.cat((b(f), c(f)), 1) for b, c, f in zip(self.box, self.cls, features, strict=True)]
        if self.training:
            return torch.cat([s.flatten(2) for s in scales], 2)
        joined = torch.cat([s.view(batch, self.outputs, -1) for s in scales], 2)
        box, cls = joined.split((4 * self.bins, self.classes), 1)
        box = box.view(batch, 4, self.bins, -1).softmax(2)
        return torch.cat(((box * self.project.view(1, 1, -1, 1)).sum(2), cls.sigmoid()), 1)


class Yolo(nn.Module):
    """Backbone, a path down and up again, and the head over three scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 3, 2)
        self.p3 = nn.Sequential(conv(8, 16, 3, 2), C2f(16, 16, 1))
        self.p4 = nn.Sequential(conv(16, 32, 3, 2), C2f(32, 32, 2))
        self.p5 = nn.Sequential(conv(32, 48, 3, 2), Sppf(48, 48))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.down4, self.down3 = C2f(48 + 32, 32, 1), C2f(32 + 16, 16, 1)
        self.stride3, self.up4 = conv(16, 16, 3, 2), C2f(16 + 32, 32, 1)
        self.stride4, self.up5 = conv(32, 32, 3, 2), C2f(32 + 48, 48, 1)
        self.detect = DetectHead((16, 32, 48))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.down4(torch.cat((self.up(p5), p4), 1))
        n3 = self.down3(torch.cat((self.up(n4), p3), 1))
        m4 = self.up4(torch.cat((self.stride3(n3), n4), 1))
        m5 = self.up5(torch.cat((self.stride4(m4), p5), 1))
        return self.detect([n3, m4, m5])


class AnchorHead(nn.Module):
    """The older head: anchors come out of the channel axis by a view, and are joined over scales."""

    def __init__(self, widths: tuple[int, ...], classes: int = 4, anchors: int = 3) -> None:
        super().__init__()
        self.na, self.no = anchors, classes + 5
        self.m = nn.ModuleList(nn.Conv2d(w, self.no * anchors, 1) for w in widths)

    def forward(self, features: list[Tensor]) -> Tensor:
        flat = []
        for layer, feature in zip(self.m, features, strict=True):
            x = layer(feature)
            b, _, h, w = x.shape
            x = x.view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous()
            flat.append(x.sigmoid().view(b, -1, self.no))
        return torch.cat(flat, 1)


class FeaturePyramid(nn.Module):
    """Lateral sums down, convolutions up, and one head that all levels share."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = (16, 24, 40)
        self.stages = nn.ModuleList(conv(a, b, 3, 2) for a, b in zip((3, *widths), widths, strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(w, width, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths)
        self.up = nn.ModuleList(conv(width, width, 3, 2) for _ in widths[1:])
        self.tower = nn.Sequential(conv(width, width), conv(width, width))
        self.cls, self.box = nn.Conv2d(width, 6, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in widths)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        levels = [lateral(f) for lateral, f in zip(self.lateral, found, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        for i, up in enumerate(self.up):
            levels[i + 1] = levels[i + 1] + up(levels[i])
        towers = [self.tower(level) for level in levels]
        boxes = [F.relu(self.box(t) * s) for t, s in zip(towers, self.scales, strict=True)]
        return [self.cls(t).permute(0, 2, 3, 1).flatten(1, 2) for t in towers], boxes


class WeightedPyramid(nn.Module):
    """Levels meet in a sum with learned, normalised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16, 3, 2), conv(16, 16, 3, 2)
        self.weights = nn.Parameter(torch.ones(2))
        self.node = nn.Sequential(conv(16, 16, 3, groups=16), conv(16, 24, 1))
        self.out = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        w = F.relu(self.weights)
        w = w / (w.sum() + 1e-4)
        both = torch.stack([a, F.interpolate(b, scale_factor=2)], dim=-1)
        return self.out(self.node((both * w).sum(-1)))


def c2f() -> Made:
    return Classifier(nn.Sequential(C2f(16, 24), C2f(24, 32, 3)), c_out=32), image()


def csp_split() -> Made:
    return Classifier(CspSplit(16, 32), c_out=32), image()


def c3() -> Made:
    return Classifier(nn.Sequential(C3(16, 24), C3(24, 24)), c_out=24), image()


def sppf() -> Made:
    return Classifier(Sppf(16, 24), c_out=24), image()


def elan() -> Made:
    return Classifier(Elan(16, 12, 32), c_out=32), image()


def yolo() -> Made:
    return Yolo(), image(side=64)


def anchor_head() -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 16, 3, 2), C3(16, 32)
            self.head = AnchorHead((16, 32))

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return self.head([a, F.max_pool2d(self.b(a), 2)])

    return Net(), image()


def fpn_shared_heads() -> Made:
    return FeaturePyramid(), image(side=64)


def bifpn() -> Made:
    return WeightedPyramid(), image()


# --- dense outputs ---


class UNet(nn.Module):
    def __init__(self, width: int = 8, transposed: bool = True) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(conv(a, b), conv(b, b)) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, 2) if transposed else nn.Sequential(nn.Upsample(scale_factor=2), conv(b, a, 1))
            for a, b in pairwise(widths)
        )
        self.merge = nn.ModuleList(nn.Sequential(conv(2 * a, a), conv(a, a)) for a in widths[:-1])
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for number, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(list(self.up)[::-1], list(self.merge)[::-1], strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.out(x)


class Espcn(nn.Module):
    def __init__(self, scale: int = 3, inner: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 16, 3, padding=1))
        width = 8 if inner else 1
        self.shuffle = nn.Sequential(nn.Conv2d(16, width * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.tail = nn.Conv2d(width, 1, 3, padding=1) if inner else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.shuffle(torch.tanh(self.features(x))))


def unet() -> Made:
    return UNet(), image()


def unet_upsample() -> Made:
    return UNet(transposed=False), image()


def espcn() -> Made:
    return Espcn(), image(1, 16)


def pixel_shuffle_inside() -> Made:
    return Espcn(2, inner=True), image(1, 16)


# --- attention over channels and space ---


class SelectiveKernel(nn.Module):
    """Two branches, stacked, weighted by a softmax over the branches."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.branches = nn.ModuleList(conv(width, width, k, groups=4) for k in (3, 5))
        self.squeeze = nn.Sequential(nn.Conv2d(width, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.select = nn.Conv2d(8, 2 * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([branch(x) for branch in self.branches], dim=1)
        attention = self.select(self.squeeze(y.sum(1).mean((2, 3), keepdim=True)))
        b, c, h, w = attention.shape
        attention = attention.view(b, 2, c // 2, h, w).softmax(1)
        return (y * attention).sum(1)


class SplitAttention(nn.Module):
    """One grouped convolution makes all radices; a softmax over them weighs their sum."""

    def __init__(self, width: int = 16, radix: int = 2) -> None:
        super().__init__()
        self.radix = radix
        self.conv = conv(width, width * radix, 3, groups=radix)
        self.fc1, self.bn = nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8)
        self.fc2 = nn.Conv2d(8, width * radix, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, rc, h, w = x.shape
        x = x.reshape(b, self.radix, rc // self.radix, h, w)
        gap = F.adaptive_avg_pool2d(x.sum(dim=1), 1)
        attention = self.fc2(F.relu(self.bn(self.fc1(gap)))).view(b, 1, self.radix, -1).transpose(1, 2)
        attention = F.softmax(attention, dim=1).reshape(b, -1, 1, 1)
        return (x * attention.reshape(b, self.radix, rc // self.radix, 1, 1)).sum(dim=1)


class GlobalContext(nn.Module):
    """A softmax over positions pools the context by a matrix product; it is added back to every position."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.mask = nn.Conv2d(width, 1, 1)
        self.transform = nn.Sequential(nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weights = self.mask(x).view(b, 1, h * w, 1).softmax(2)
        context = torch.matmul(x.view(b, c, h * w).unsqueeze(1), weights)
        return x + self.transform(context.view(b, c, 1, 1))


class EfficientChannelAttention(nn.Module):
    """A convolution of width three along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        return x * self.conv(y).sigmoid().view(x.shape[0], -1, 1, 1).expand_as(x)


class Cbam(nn.Module):
    """Channels weighed by a shared network's word on their mean and maximum, then positions by those over channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, width))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(scale).unsqueeze(2).unsqueeze(3)
        maps = torch.cat((x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)), dim=1)
        return x * torch.sigmoid(self.spatial(maps))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, width), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return x * self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)


class BilinearAttention(nn.Module):
    """Descriptors gathered over space, and given back to every position: two matrix products of activations."""

    def __init__(self, width: int = 16, keys: int = 8, values: int = 12) -> None:
        super().__init__()
        self.values, self.gather = nn.Conv2d(width, values, 1), nn.Conv2d(width, keys, 1)
        self.scatter, self.out = nn.Conv2d(width, keys, 1), nn.Conv2d(values, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        values = self.values(x).flatten(2)
        gathered = values @ self.gather(x).flatten(2).softmax(-1).transpose(1, 2)
        given = gathered @ self.scatter(x).flatten(2).softmax(1)
        return x + self.out(given.unflatten(2, (h, w)))


class SelfAttention2d(nn.Module):
    """Multi-head attention between positions, inside a convolutional network."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm = nn.GroupNorm(1, width)
        self.qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.unbind(1)
        attention = (q.transpose(-2, -1) @ k * self.scale).softmax(-1)
        return x + self.proj((v @ attention.transpose(-2, -1)).reshape(b, c, h, w))


class TokenBlock(nn.Module):
    """Positions become tokens for nn.MultiheadAttention and an MLP, with LayerScale, and positions again."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.gamma = nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        y = self.norm1(tokens)
        tokens = tokens + self.gamma * self.attention(y, y, y, need_weights=False)[0]
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).unflatten(2, (h, w))


def selective_kernel() -> Made:
    return Classifier(SelectiveKernel()), image()


def split_attention() -> Made:
    return Classifier(SplitAttention()), image()


def global_context() -> Made:
    return Classifier(GlobalContext()), image()


def eca() -> Made:
    return Classifier(nn.Sequential(conv(16, 24), EfficientChannelAttention(), conv(24, 16))), image()


def cbam() -> Made:
    return Classifier(nn.Sequential(conv(16, 16), Cbam())), image()


def squeeze_excite() -> Made:
    return Classifier(nn.Sequential(SqueezeExcite(), conv(16, 16))), image()


def bilinear_attention() -> Made:
    return Classifier(BilinearAttention()), image()


def self_attention() -> Made:
    return Classifier(SelfAttention2d()), image()


def multihead_attention() -> Made:
    return Classifier(nn.Sequential(TokenBlock(), conv(16, 24)), c_out=24), image(side=16)


# --- pieces of channels ---


class Res2NetBlock(nn.Module):
    """Slices of one width, each convolved with what the one before gave."""

    def __init__(self, c_in: int = 16, width: int = 6, scales: int = 4) -> None:
        super().__init__()
        self.width = width
        self.expand = conv(c_in, width * scales, 1)
        self.convs = nn.ModuleList(conv(width, width) for _ in range(scales - 1))
        self.reduce = conv(width * scales, c_in, 1)

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.expand(x), self.width, 1)
        done = [pieces[0]]
        y = pieces[1]
        for number, layer in enumerate(self.convs):
            y = layer(y if number == 0 else y + pieces[number + 1])
            done.append(y)
        return x + self.reduce(torch.cat(done, 1))


class GhostModule(nn.Module):
    """Half of the channels by a convolution, the others cheaply from these; what is too many is cut off."""

    def __init__(self, c_in: int, c_out: int, ratio: int = 2) -> None:
        super().__init__()
        self.oup = c_out
        first = -(-c_out // ratio)
        self.primary = conv(c_in, first, 1)
        self.cheap = conv(first, first * (ratio - 1), 3, groups=first)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        out = torch.cat([x1, self.cheap(x1)], dim=1)
        return out[:, : self.oup, :, :]


class PartialConv(nn.Module):
    """Convolves the first quarter of the channels and leaves the others as they are."""

    def __init__(self, width: int, n_div: int = 4, by_slice: bool = False) -> None:
        super().__init__()
        self.dim_conv = width // n_div
        self.dim_rest = width - self.dim_conv
        self.by_slice = by_slice
        self.partial = nn.Conv2d(self.dim_conv, self.dim_conv, 3, 1, 1, bias=False)
        self.mlp = nn.Sequential(conv(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        if self.by_slice:
            y = x.clone()
            y[:, : self.dim_conv] = self.partial(x[:, : self.dim_conv])
        else:
            a, b = torch.split(x, [self.dim_conv, self.dim_rest], dim=1)
            y = torch.cat((self.partial(a), b), 1)
        return x + self.mlp(y)


class ShuffleUnit(nn.Module):
    def __init__(self, width: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.a, self.b = conv(width, width, 1, groups=groups), conv(width, width, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        b, _, h, w = y.shape
        y = y.view(b, self.groups, -1, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return F.relu(x + self.b(y))


class ShuffleWithNumbers(nn.Module):
    """A shuffle whose number of groups stands in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 32, 3, groups=4), conv(32, 16, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, c, h, w = x.size()
        x = x.view(b, 4, -1, h, w)
        return self.b(torch.transpose(x, 1, 2).contiguous().view(b, c, h, w))


class SpaceToDepth(nn.Module):
    def __init__(self, by_slice: bool) -> None:
        super().__init__()
        self.by_slice = by_slice
        self.before, self.after = conv(16, 8), conv(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.by_slice:
            corners = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
            return self.after(torch.cat(corners, 1))
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
        return self.after(x.view(b, c * 4, h // 2, w // 2))


class ZeroPadShortcut(nn.Module):
    """The parameter-free shortcut as many write it: a lambda that holds its numbers in a closure."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(c_in, c_out, 3, 2), nn.Conv2d(c_out, c_out, 3, padding=1), nn.BatchNorm2d(c_out))
        extra = c_out - c_in
        self.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def res2net_block() -> Made:
    return Classifier(nn.Sequential(Res2NetBlock(), Res2NetBlock())), image()


def ghost() -> Made:
    return Classifier(nn.Sequential(GhostModule(16, 24), GhostModule(24, 15)), c_out=15), image()


def partial_conv() -> Made:
    return Classifier(nn.Sequential(PartialConv(16), PartialConv(16))), image()


def partial_conv_slice() -> Made:
    return Classifier(PartialConv(16, by_slice=True)), image()


def shuffle_unit() -> Made:
    return Classifier(ShuffleUnit()), image()


def shuffle_with_numbers() -> Made:
    return Classifier(ShuffleWithNumbers()), image()


def focus() -> Made:
    return Classifier(SpaceToDepth(by_slice=True), c_out=24), image()


def space_to_depth() -> Made:
    return Classifier(SpaceToDepth(by_slice=False), c_out=24), image()


def zero_pad_shortcut() -> Made:
    return Classifier(nn.Sequential(ZeroPadShortcut(16, 32), ZeroPadShortcut(32, 40)), c_out=40), image()


# --- convolutions that are more than that ---


class CoordConv(nn.Module):
    """Two channels of coordinates beside the others."""

    def __init__(self, c_in: int = 16, c_out: int = 16) -> None:
        super().__init__()
        self.conv = conv(c_in + 2, c_out)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).expand(b, 1, h, w)
        columns = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype).view(1, 1, 1, w).expand(b, 1, h, w)
        return self.conv(torch.cat([x, rows, columns], 1))


class ConditionalConv(nn.Module):
    """Every example has its own weight, mixed from a few; the batch becomes groups of one convolution."""

    def __init__(self, c_in: int = 16, c_out: int = 24, experts: int = 3) -> None:
        super().__init__()
        self.shape = (c_out, c_in, 3, 3)
        self.weight = nn.Parameter(torch.randn(experts, c_out * c_in * 9) / 12)
        self.route = nn.Linear(c_in, experts)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        routing = self.route(x.mean((2, 3))).sigmoid()
        weight = (routing @ self.weight).view(b * self.shape[0], *self.shape[1:])
        return F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, self.shape[0], h, w)


class ExpertsConv(nn.Module):
    """A weight mixed from a stack of weights, for the whole batch."""

    def __init__(self, c_in: int = 16, c_out: int = 24, experts: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, c_out, c_in, 3, 3) / 12)
        self.mix = nn.Parameter(torch.ones(experts))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.mix.softmax(0).view(-1, 1, 1, 1, 1) * self.weight).sum(0)
        return F.conv2d(x, weight, padding=1)


class BlurPool(nn.Module):
    """A fixed filter, the same for every channel, kept in a buffer that is as long as there are channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(line, line) / 16
        self.register_buffer("filter", kernel[None, None].repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filter, stride=2, groups=x.shape[1])


class StandardisedConv(nn.Conv2d):
    """Weights less their mean, over their deviation, of each filter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = weight.std(dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(
            x, (weight - mean) / (deviation + 1e-5), self.bias, self.stride, self.padding, groups=self.groups
        )


class ScaledConv(nn.Conv2d):
    """Weights times a gain of each filter."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(c_out, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.gain, self.bias)


class LayerNorm2d(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / torch.sqrt(variance + 1e-6) + self.bias[:, None, None]


class ResponseNorm(nn.Module):
    """Global response normalisation: every channel's norm over the mean norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNextBlock(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.expand, self.reduce = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.response = ResponseNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.reduce(self.response(F.gelu(self.expand(y))))
        return x + y.permute(0, 3, 1, 2)


def coord_conv() -> Made:
    return Classifier(CoordConv()), image()


def conditional_conv() -> Made:
    return Classifier(nn.Sequential(ConditionalConv(), nn.BatchNorm2d(24), nn.ReLU()), c_out=24), image()


def experts_conv() -> Made:
    return Classifier(nn.Sequential(ExpertsConv(), nn.BatchNorm2d(24), nn.ReLU()), c_out=24), image()


def blur_pool() -> Made:
    return Classifier(nn.Sequential(BlurPool(16), conv(16, 24), BlurPool(24)), c_out=24), image()


def weight_standardisation() -> Made:
    piece = nn.Sequential(
        StandardisedConv(16, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.ReLU(), StandardisedConv(24, 16, 3, padding=1)
    )
    return Classifier(piece), image()


def scaled_conv() -> Made:
    return Classifier(nn.Sequential(ScaledConv(16, 24), nn.ReLU(), ScaledConv(24, 16))), image()


def layer_norm_by_hand() -> Made:
    return Classifier(nn.Sequential(conv(16, 24), LayerNorm2d(24), conv(24, 16))), image()


def convnext_v2_block() -> Made:
    return Classifier(nn.Sequential(ConvNextBlock(), ConvNextBlock())), image()


def many_norms() -> Made:
    piece = nn.Sequential(
        nn.Conv2d(16, 24, 3),
        nn.InstanceNorm2d(24, affine=True),
        nn.PReLU(24),
        nn.Conv2d(24, 32, 3),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.Conv2d(32, 24, 3, groups=4),
        nn.GroupNorm(1, 24),
        nn.LeakyReLU(0.1),
        nn.LocalResponseNorm(5),
        nn.Conv2d(24, 16, 1),
    )
    return Classifier(piece), image()


def grouped() -> Made:
    """Groups that do not line up from layer to layer, a depthwise multiplier, and a grouped transposed convolution."""
    piece = nn.Sequential(
        conv(16, 24, 3, groups=8),
        conv(24, 48, 3, groups=3),
        conv(48, 96, 3, groups=48),
        nn.ConvTranspose2d(96, 32, 2, 2, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2, 2),
    )
    return Classifier(piece), image(side=16)


# --- shapes of data, inputs and outputs ---


class FlattenAndBack(nn.Module):
    """Flattened, through linear layers, and viewed as maps again by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2))
        self.fc1, self.fc2 = nn.Linear(16 * 4 * 4, 20), nn.Linear(20, 32 * 2 * 2)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(32, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        x = F.relu(self.fc1(x.view(x.size(0), -1)))
        x = F.relu(self.fc2(x)).view(-1, 32, 2, 2)
        return self.decoder(x)


class SharedModules(nn.Module):
    """One convolution used three times, two names for one module, and one norm for each use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.mix = conv(16, 24, 1)
        self.alias = self.mix
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm in self.norms:
            x = x + F.relu(norm(self.shared(x)))
        return self.head((self.mix(x) + self.alias(F.max_pool2d(x, 3, 1, 1))).mean((2, 3)))


class DictOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 3, 2), C3(16, 24))
        self.mask, self.cls = nn.Conv2d(24, 2, 1), nn.Linear(24, 5)
        self.aux = nn.Sequential(conv(24, 8), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        y = self.body(x)
        out: dict[str, Tensor | list[Tensor]] = {"mask": self.mask(y), "logits": [self.cls(y.mean((2, 3)))]}
        if self.training:
            out["aux"] = self.aux(y)
        return out


class TwoInputs(nn.Module):
    """Two towers, the features' difference and product, and a vector beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(conv(3, 16, 3, 2), conv(16, 24, 3, 2))
        self.embed = nn.Sequential(nn.Linear(7, 24), nn.Sigmoid())
        self.head = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, left: Tensor, right: Tensor, extra: Tensor) -> Tensor:
        a, b = self.tower(left), self.tower(right)
        a = a * self.embed(extra)[:, :, None, None]
        return self.head(torch.cat([(a - b).abs().mean((2, 3)), (a * b).amax((2, 3))], dim=-1))


class Gated(nn.Module):
    """One channel as a mask over all, a gate from the channels' halves, and a maximum over pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.value = nn.Conv2d(16, 1, 1), conv(16, 24)
        self.glu, self.maxout = nn.Conv2d(24, 40, 1), nn.Conv2d(20, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.glu(self.value(x) * self.mask(x).sigmoid()), dim=1)
        y = self.maxout(x)
        return y.view(y.shape[0], 16, 2, *y.shape[2:]).amax(2)


class Repeated(nn.Module):
    """Channels repeated, rolled and flipped."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 8), conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.cat((x.flip(3), x.roll(1, 2)), 1)) + torch.repeat_interleave(x, 2, dim=1)


def flatten_and_back() -> Made:
    return FlattenAndBack(), image(side=16)


def shared_modules() -> Made:
    return SharedModules(), image()


def dict_outputs() -> Made:
    return DictOutputs(), image()


def two_inputs() -> Made:
    return TwoInputs(), (*image(), *image(), torch.rand(2, 7))


def gated() -> Made:
    return Classifier(Gated()), image()


def repeated() -> Made:
    return Classifier(Repeated()), image()


def conv1d() -> Made:
    layers = (nn.Conv1d(2, 16, 7, 2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 5, groups=2), nn.BatchNorm1d(24))
    head = (nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(96, 20), nn.BatchNorm1d(20), nn.Linear(20, 3))
    return nn.Sequential(*layers, *head), (torch.rand(2, 2, 64),)


def conv3d() -> Made:
    layers = (nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 16, 3))
    head = (nn.BatchNorm3d(16), nn.ReLU(), nn.ConvTranspose3d(16, 8, 2, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return nn.Sequential(*layers, *head, nn.Linear(8, 3)), (torch.rand(2, 1, 8, 12, 12),)
