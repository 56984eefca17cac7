"""Blocks that normalise, scale, gate pointwise, or drop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, alone, conv
from torch import Tensor, nn


def _vector(size: int, *axes: int) -> nn.Parameter:
    """A parameter away from 0 and 1, so that a wrong slice shows."""
    return nn.Parameter((torch.rand(size) + 0.5).reshape(size, *axes) if axes else torch.rand(size) + 0.5)


class Norm2d(Block):
    """A norm of the channels, written in `how`."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        super().__init__(inputs)
        self.how, self.eps, self.groups, self.normalized_shape = how, 1e-5, 2, (inputs,)
        self.weight, self.bias = _vector(inputs), _vector(inputs)
        self.gamma, self.beta = _vector(inputs, 1, 1), _vector(inputs, 1, 1)
        self.register_buffer("running_mean", torch.rand(inputs))
        self.register_buffer("running_var", torch.rand(inputs) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "batch_norm":
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
            )
        if self.how == "group_norm":
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        if self.how == "group_norm, C groups":
            return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        if self.how == "instance_norm":
            return F.instance_norm(x, weight=self.weight, bias=self.bias)
        if self.how == "layer_norm, permuted":
            y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
            return y.permute(0, 3, 1, 2)
        if self.how == "layer_norm, shape":
            return F.layer_norm(x.movedim(1, -1), (x.shape[1],), eps=self.eps).movedim(-1, 1) * self.gamma
        if self.how == "mean and square":
            u = x.mean(1, keepdim=True)
            s = (x - u).pow(2).mean(1, keepdim=True)
            return self.gamma * ((x - u) / torch.sqrt(s + self.eps)) + self.beta
        if self.how == "var_mean":
            var, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
            return (x - mean) * torch.rsqrt(var + self.eps) * self.gamma + self.beta
        if self.how == "rms_norm":
            return F.rms_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.eps).permute(0, 3, 1, 2)
        if self.how == "root mean square":
            return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps) * self.gamma
        if self.how == "normalize":
            return F.normalize(x, dim=1) * self.gamma
        if self.how == "group variance":  # EvoNorm-S0
            n, c, h, w = x.shape
            grouped = x.view(n, self.groups, c // self.groups, h, w)
            std = grouped.var(dim=(2, 3, 4), unbiased=False, keepdim=True).add(self.eps).sqrt().expand_as(grouped)
            return x * torch.sigmoid(x * self.gamma) / std.reshape(n, c, h, w) + self.beta
        raise ValueError(self.how)


class GRN(Block):
    """ConvNeXt V2's: each channel's norm over space against the mean of all channels'."""

    def __init__(self, inputs: int, width: int, *, last: bool) -> None:
        super().__init__(inputs)
        self.last = last
        self.gamma = nn.Parameter(torch.rand(1, 1, 1, inputs) if last else torch.rand(1, inputs, 1, 1))
        self.beta = nn.Parameter(torch.rand(1, 1, 1, inputs) if last else torch.rand(1, inputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        axes, axis = ((1, 2), -1) if self.last else ((2, 3), 1)
        x = x.permute(0, 2, 3, 1) if self.last else x
        g = torch.norm(x, p=2, dim=axes, keepdim=True)
        x = self.gamma * (x * (g / (g.mean(dim=axis, keepdim=True) + 1e-6))) + self.beta + x
        return x.permute(0, 3, 1, 2) if self.last else x


class ConvNeXt(Block):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.dwconv, self.norm = conv(inputs, inputs, groups=inputs), nn.LayerNorm(inputs, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(inputs, 2 * width), nn.Linear(2 * width, inputs)
        self.gamma = _vector(inputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class FilterResponse(Block):
    """Mean square over space, and a learned threshold."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.weight, self.bias, self.tau = (nn.Parameter(torch.rand(1, inputs, 1, 1) + 0.5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-6)
        return torch.maximum(self.weight * x + self.bias, self.tau)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.8) / 0.8


class MemoryEfficientSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.mul(torch.sigmoid(x))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


def _of_pooled(m: Written, x: Tensor) -> Tensor:
    """LayerNorm over channels and space at once, of a pooled map that gates the input."""
    return x * torch.sigmoid(m.norm(F.adaptive_avg_pool2d(x, 2))).mean((2, 3), keepdim=True)


def _in_place(m: Written, x: Tensor) -> Tensor:
    x = m.conv(x)
    x += 1
    x.mul_(0.5).clamp_(min=-1).sub_(m.other)
    x[x < 0] = 0.1
    return F.leaky_relu_(x)


def _last(module: nn.Module, channels_out: int) -> Written:
    return Written(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), channels_out, norm=module)


def _written(how: str, **options: int) -> Piece:
    return Piece(lambda c, w: Norm2d(c, w, how), **options)


NORMS: dict[str, Piece] = {
    "BatchNorm": Piece(lambda c, w: alone(nn.BatchNorm2d(c), c)),
    "BatchNorm, not affine": Piece(lambda c, w: alone(nn.BatchNorm2d(c, affine=False), c)),
    "BatchNorm, no running statistics": Piece(lambda c, w: alone(nn.BatchNorm2d(c, track_running_stats=False), c)),
    "batch_norm by function": _written("batch_norm"),
    "GroupNorm, 2 groups": Piece(lambda c, w: alone(nn.GroupNorm(2, c), c), multiple=2),
    "GroupNorm, 1 group": Piece(lambda c, w: alone(nn.GroupNorm(1, c), c)),
    "GroupNorm, C groups": Piece(lambda c, w: alone(nn.GroupNorm(c, c), c), notes="num_groups must follow"),
    "GroupNorm, not affine": Piece(lambda c, w: alone(nn.GroupNorm(2, c, affine=False), c), multiple=2),
    "group_norm by function": _written("group_norm", multiple=2),
    "group_norm by function, C groups": _written("group_norm, C groups"),
    "InstanceNorm": Piece(lambda c, w: alone(nn.InstanceNorm2d(c), c)),
    "InstanceNorm, affine": Piece(lambda c, w: alone(nn.InstanceNorm2d(c, affine=True), c)),
    "InstanceNorm, running statistics": Piece(
        lambda c, w: alone(nn.InstanceNorm2d(c, affine=True, track_running_stats=True), c)
    ),
    "instance_norm by function": _written("instance_norm"),
    "LayerNorm, channels last": Piece(lambda c, w: _last(nn.LayerNorm(c), c)),
    "LayerNorm, not affine": Piece(lambda c, w: _last(nn.LayerNorm(c, elementwise_affine=False), c)),
    "LayerNorm over channels and space": Piece(lambda c, w: Written(_of_pooled, c, norm=nn.LayerNorm([c, 2, 2]))),
    "layer_norm by function, permuted": _written("layer_norm, permuted"),
    "layer_norm by function, shape of x": _written("layer_norm, shape"),
    "LayerNorm by mean and square": _written("mean and square"),
    "LayerNorm by var_mean": _written("var_mean"),
    "RMSNorm": Piece(lambda c, w: _last(nn.RMSNorm(c, eps=1e-6), c)),
    "rms_norm by function": _written("rms_norm"),
    "RMSNorm by hand": _written("root mean square"),
    "unit length": _written("normalize"),
    "variance of groups (EvoNorm)": _written("group variance", multiple=2),
    "GRN": Piece(lambda c, w: GRN(c, w, last=False)),
    "GRN, channels last": Piece(lambda c, w: GRN(c, w, last=True)),
    "ConvNeXt block": Piece(ConvNeXt),
    "filter response norm": Piece(FilterResponse),
    "local response norm": Piece(
        lambda c, w: alone(nn.LocalResponseNorm(3), c),
        expected="frozen",
        prunes=False,
        notes="neighbours by position",
    ),
    "PReLU, one": Piece(lambda c, w: alone(nn.PReLU(), c)),
    "PReLU, C": Piece(lambda c, w: alone(nn.PReLU(c), c)),
    "LayerScale (C,)": Piece(
        lambda c, w: Written(
            lambda m, x: x + (x.permute(0, 2, 3, 1) * m.gamma).permute(0, 3, 1, 2), c, gamma=_vector(c)
        )
    ),
    "LayerScale (C,), viewed": Piece(
        lambda c, w: Written(lambda m, x: x * m.gamma.view(1, -1, 1, 1), c, gamma=_vector(c))
    ),
    "LayerScale (C, 1, 1)": Piece(lambda c, w: Written(lambda m, x: x * m.gamma, c, gamma=_vector(c, 1, 1))),
    "scale and shift (1, C, 1, 1)": Piece(
        lambda c, w: Written(
            lambda m, x: torch.addcmul(m.beta, m.gamma, x),
            c,
            gamma=nn.Parameter(torch.rand(1, c, 1, 1) + 0.5),
            beta=nn.Parameter(torch.rand(1, c, 1, 1)),
        )
    ),
    "Dropout2d": Piece(
        lambda c, w: Written(lambda m, x: m.drop(m.conv(x)), w, conv=conv(c, w), drop=nn.Dropout2d(0.2))
    ),
    "DropPath": Piece(lambda c, w: Written(lambda m, x: x + m.drop(m.conv(x)), c, conv=conv(c, c), drop=DropPath())),
    "function with a backward of its own": Piece(
        lambda c, w: Written(lambda m, x: MemoryEfficientSwish.apply(m.conv(x)), w, conv=conv(c, w))
    ),
    "in-place operations": Piece(
        lambda c, w: Written(_in_place, w, conv=conv(c, w), other=nn.Parameter(torch.rand(1, w, 1, 1)))
    ),
    "where and masks": Piece(
        lambda c, w: Written(lambda m, x: torch.where(x > 0.3, x, -x).masked_fill(x > 1.0, 0.7), c)
    ),
    "many pointwise operations": Piece(
        lambda c, w: Written(
            lambda m, x: torch.lerp(F.mish(x), F.softplus(x), 0.3) + torch.atan2(x, 1 + x * x) + F.hardtanh(x) ** 2, c
        )
    ),
}
