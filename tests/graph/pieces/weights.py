"""Convolutions whose weights are computed, stored, shared or mixed before they are used."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, alone, conv
from torch import Tensor, nn


class StandardisedConv(nn.Conv2d):
    """Weights with zero mean and unit spread over each filter, written out."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BatchNormedConv(nn.Conv2d):
    """The same by batch_norm over the weight (timm's StdConv2d)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledConv(nn.Conv2d):
    """NFNet's: standardised by batch_norm, with a gain, over the root of the fan-in of the start."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class EqualisedConv(nn.Conv2d):
    """A weight times a stored factor, and a stored mask of its elements."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.2).float())
        self.factor = math.sqrt(2 / (9 * inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask * self.factor, self.bias, padding=self.padding)


class CondConv(Block):
    """Kernels mixed for every example, then a convolution with the batch as groups (timm's CondConv2d)."""

    def __init__(self, inputs: int, width: int, groups: int = 1) -> None:
        super().__init__(groups * width)
        self.in_channels, self.out_channels, self.groups = inputs, groups * width, groups
        self.kernel_size, self.num_experts = (3, 3), 3
        self.weight_shape = (self.out_channels, self.in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(0.1 * torch.randn(self.num_experts, math.prod(self.weight_shape)))
        self.bias = nn.Parameter(torch.randn(self.num_experts, self.out_channels))
        self.routing = nn.Linear(inputs, self.num_experts)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        routing = torch.sigmoid(self.routing(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        weight = torch.matmul(routing, self.weight)
        weight = weight.view(n * self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        bias = torch.matmul(routing, self.bias).view(n * self.out_channels)
        x = x.reshape(1, n * c, h, w)
        out = F.conv2d(x, weight, bias, padding=1, groups=self.groups * n)
        return out.permute([1, 0, 2, 3]).view(n, self.out_channels, out.shape[-2], out.shape[-1])


class DynamicConv(Block):
    """The same with kernels stored in five axes and attention by softmax."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.kernels = nn.Parameter(0.1 * torch.randn(3, width, inputs, 3, 3))
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, 3, 1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mix = self.attention(x).softmax(1)
        k, out, inputs, kh, kw = self.kernels.shape
        weight = (mix @ self.kernels.view(k, -1)).view(n * out, inputs, kh, kw)
        return F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n).view(n, out, h, w)


class Modulated(Block):
    """StyleGAN2's: the input channels of the weight scaled for every example, then each filter to unit length."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.weight = nn.Parameter(torch.randn(width, inputs, 3, 3) / (3 * math.sqrt(inputs)))
        self.style = nn.Linear(inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = self.weight[None] * (self.style(x.mean((2, 3))).view(n, 1, c, 1, 1) + 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        weight = weight.view(n * weight.shape[1], c, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n).view(n, -1, h, w)


class Blur(Block):
    """A fixed kernel over every channel, before a stride of 2."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        super().__init__(inputs)
        self.how, self.channels = how, inputs
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = (taps[:, None] * taps[None, :])[None, None]
        self.register_buffer("filt", kernel.repeat(inputs, 1, 1, 1) if how.startswith("stored") else kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        if self.how == "stored, groups by attribute":
            return F.conv2d(x, self.filt, stride=2, groups=self.channels)
        if self.how == "stored, groups by shape":
            return F.conv2d(x, self.filt, stride=2, groups=x.shape[1])
        if self.how == "repeated by attribute":
            return F.conv2d(x, self.filt.repeat(self.channels, 1, 1, 1), stride=2, groups=self.channels)
        return F.conv2d(x, self.filt.expand(x.shape[1], -1, -1, -1), stride=2, groups=x.shape[1])


class Functional(Block):
    """Convolutions by function, with parameters of the block's own: plain, grouped, depthwise."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(2 * width)
        self.groups = 2
        self.weight = nn.Parameter(torch.randn(2 * width, inputs, 3, 3) / (3 * math.sqrt(inputs)))
        self.grouped = nn.Parameter(torch.randn(2 * width, width, 1, 1) / math.sqrt(width))
        self.depth = nn.Parameter(torch.randn(2 * width, 1, 3, 3) / 3)
        self.bias = nn.Parameter(torch.randn(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(F.conv2d(x, self.weight, self.bias, padding=1))
        x = F.silu(F.conv2d(x, self.grouped, groups=self.groups))
        return F.conv2d(x, self.depth, padding=1, groups=x.size(1))


class Reused(Block):
    """One module at two places, whose widths are one then, and two modules with one weight."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.conv, self.norm = conv(inputs, inputs), nn.BatchNorm2d(inputs)
        self.first, self.second = conv(inputs, width, 1), conv(inputs, width, 1)
        self.second.weight = self.first.weight
        self.last = conv(width, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.conv(x)))
        y = F.silu(self.norm(self.conv(y)))
        return y + self.last(self.first(x) * torch.sigmoid(self.second(y)))


class TiedBack(Block):
    """An autoencoder whose decoder is the encoder's weight, transposed."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.encode, self.point = conv(inputs, width, bias=False), conv(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(torch.tanh(self.encode(x)), self.encode.weight, padding=1)
        return y + F.conv2d(self.point(x), self.point.weight.transpose(0, 1))


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and in use
        return nn.utils.weight_norm(module)


def _conv_of(kind: type[nn.Conv2d], groups: int = 1):
    def build(inputs: int, width: int) -> nn.Module:
        outputs = groups * max(2, width // groups)
        return alone(kind(inputs, outputs, kernel_size=3, padding=1, groups=groups), outputs)

    return build


WEIGHTS: dict[str, Piece] = {
    "standardised weight": Piece(_conv_of(StandardisedConv), notes="statistics over the kept inputs"),
    "standardised weight, 2 groups": Piece(_conv_of(StandardisedConv, 2), multiple=2),
    "standardised weight by batch_norm": Piece(_conv_of(BatchNormedConv), notes="statistics over the kept inputs"),
    "standardised weight by batch_norm, 2 groups": Piece(_conv_of(BatchNormedConv, 2), multiple=2),
    "scaled convolution": Piece(lambda c, w: alone(ScaledConv(c, w), w)),
    "scaled convolution, 2 groups": Piece(lambda c, w: alone(ScaledConv(c, 2 * w, groups=2), 2 * w), multiple=2),
    "weight times factor and mask": Piece(lambda c, w: alone(EqualisedConv(c, w), w)),
    "conditional convolution": Piece(CondConv, expected="frozen", notes="the experts are a width, too, which may stay"),
    "conditional convolution, 2 groups": Piece(lambda c, w: CondConv(c, w, groups=2), multiple=2, expected="frozen"),
    "modulated convolution": Piece(Modulated),
    "dynamic convolution": Piece(
        DynamicConv,
        expected="frozen",
        prunes=False,
        notes="kernels lie along one axis with their input channels, which the trace keeps whole",
    ),
    "blur, stored kernels, groups by attribute": Piece(
        lambda c, w: Blur(c, w, "stored, groups by attribute"), scale=0.5
    ),
    "blur, stored kernels, groups by shape": Piece(lambda c, w: Blur(c, w, "stored, groups by shape"), scale=0.5),
    "blur, repeated by attribute": Piece(lambda c, w: Blur(c, w, "repeated by attribute"), scale=0.5),
    "blur, expanded by shape": Piece(lambda c, w: Blur(c, w, "expanded by shape"), scale=0.5),
    "functional convolutions": Piece(Functional),
    "reused module, tied weights": Piece(Reused),
    "tied transposed weight": Piece(TiedBack),
    "weight norm": Piece(
        lambda c, w: alone(nn.utils.parametrizations.weight_norm(conv(c, w)), w),
        drawn=False,
        notes="norms over the kept inputs",
    ),
    "weight norm by hooks": Piece(
        lambda c, w: alone(_old_weight_norm(conv(c, w)), w),
        expected="frozen",
        drawn=False,
        notes="copy.deepcopy refuses such a module: its weight is no leaf",
    ),
    "spectral norm": Piece(
        lambda c, w: alone(nn.utils.parametrizations.spectral_norm(conv(c, w)), w),
        expected="frozen",
        prunes=False,
        drawn=False,
        notes="training mode iterates on the stored vectors",
    ),
}
