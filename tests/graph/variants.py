"""Small networks for the rarer operations, so that no rule goes without one: every one is pruned exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.between import Case, Held, case, conv
from torch import Tensor, nn


def grid(rank: int, side: int) -> Tensor:
    """Positions to sample at, inside the image: (1, side, …, rank)."""
    return torch.rand((1, *[side] * rank, rank), generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def unpooled(x: Tensor, rank: int) -> Tensor:
    pool, unpool = ((F.max_pool2d, F.max_unpool2d), (F.max_pool3d, F.max_unpool3d))[rank - 2]
    return unpool(*pool(x, 2, return_indices=True), 2)


def attended(m: nn.Module, x: Tensor) -> Tensor:
    """Every position looks at the others: scores, to which a tensor is added, are products over the channels."""
    q = x.flatten(2)
    scores = torch.baddbmm(x.new_zeros(1, 64, 64), q.transpose(1, 2), q, alpha=0.1).softmax(2)
    return x + torch.bmm(q, scores).view_as(x)


MADE: dict[str, Case] = {
    "made alike": case(lambda m, x: x + torch.zeros_like(x) + torch.ones_like(x) * torch.full_like(x, 2.0)),
    "noise alike": case(
        lambda m, x: x + 0 * (torch.rand_like(x) + torch.randn_like(x) + torch.empty_like(x).uniform_().normal_())
    ),
    "filled": case(lambda m, x: torch.empty_like(x).copy_(x) + torch.empty_like(x).fill_(1.0) + x.clone().zero_()),
    "full": case(lambda m, x: x + torch.full(x.shape, 2.0)),
    "ones": case(lambda m, x: x * torch.ones(x.shape)),
    "zeros": case(lambda m, x: x + torch.zeros(1, x.shape[1], 1, 1)),
    "drawn numbers": case(lambda m, x: x + 0 * torch.rand(x.shape)),
    "drawn normal numbers": case(lambda m, x: x + 0 * torch.randn(x.shape)),
    "empty": case(lambda m, x: x + torch.empty(x.shape).zero_()),
    "empty by strides": case(lambda m, x: x + torch.empty_strided(x.shape, x.stride()).zero_()),
    "new ones": case(lambda m, x: x * x.new_ones(x.shape)),
    "new full": case(lambda m, x: x * x.new_full(x.shape, 2.0)),
    "new zeros": case(lambda m, x: x + x.new_zeros(x.shape)),
    "new empty": case(lambda m, x: x + x.new_empty(x.shape).zero_()),
    "new empty by strides": case(lambda m, x: x + x.new_empty_strided(x.shape, x.stride()).zero_()),
}

POINTWISE: dict[str, Case] = {
    "other types": case(lambda m, x: (x.double() + x.detach()).to(x.dtype) * torch.tensor(2.0)),
    "native dropout": case(lambda m, x: torch.native_dropout(x, 0.5, m.training)[0], draws=True),
    "activations": case(
        lambda m, x: F.hardswish(x.clone(), inplace=True) + F.hardtanh(x) + F.logsigmoid(x) + F.softshrink(x, 0.1)
    ),
    "hardswish": case(lambda m, x: F.hardswish(x)),
    "hardswish in place": case(lambda m, x: F.hardswish(x.clone(), inplace=True)),
    "logarithm of sigmoid": case(lambda m, x: F.logsigmoid(x)),
    "slopes": case(lambda m, x: F.prelu(x - 1, m.held.tensor), lambda: {"held": Held(torch.linspace(0.1, 0.9, 8))}),
    "random slopes": case(lambda m, x: F.rrelu(x - 1, training=m.training), draws=True),
    "where": case(lambda m, x: torch.where(x > 1, x, 0.5)),
    "masked fill": case(lambda m, x: x.masked_fill(x > 1, torch.tensor(0.5))),
    "masked fill in place": case(lambda m, x: x.clone().masked_fill_(x > 1, 0.5)),
    "put where a mask says": case(lambda m, x: x.index_put((x > 1,), torch.tensor(0.5))),
    "put in place": case(lambda m, x: x.clone().index_put_((x > 1,), torch.tensor(0.5))),
}

MOVED: dict[str, Case] = {
    "an axis more": case(lambda m, x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).sum(2) + x.unsqueeze(0).squeeze(0)),
    "repeated": case(lambda m, x: x.repeat(1, 1, 2, 1)),
    "laid out otherwise": case(lambda m, x: x.as_strided(x.shape, x.stride()) + 1),
    "laid out otherwise in place": case(lambda m, x: x.clone().as_strided_(x.shape, x.stride())),
    "an alias": case(lambda m, x: torch.ops.aten.alias(x) + 1),
    "rows one by one": case(lambda m, x: x.unbind(2)[0].unsqueeze(2) + x[:, :, 1].unsqueeze(2) + x),
    "whole slice": case(lambda m, x: x[:, :, ::1][:, ::1, ::2]),
    "stripes": case(lambda m, x: sum(x.split(4, 2))),
    "unequal stripes": case(lambda m, x: torch.cat(x.split([3, 5], 2)[::-1], 2)),
    "diagonal": case(lambda m, x: x + x.diagonal(dim1=2, dim2=3).unsqueeze(2)),
    "windows along an axis": case(lambda m, x: x.unfold(2, 2, 2).mean(-1)),
    "windows beside one another": case(
        lambda m, x: m.c(F.unfold(x, 2, stride=2)).unsqueeze(3),
        lambda: {"c": nn.Conv1d(32, 4, 1)},
        sizes={"c": 4},
        after=4,
    ),
    "windows and back": case(lambda m, x: F.fold(F.unfold(x, 2, stride=2), 8, 2, stride=2)),
    "columns by numbers": case(
        lambda m, x: x[:, :, :, [3, 1]] + x.index_select(3, m.held.tensor), lambda: {"held": Held(torch.tensor([1, 3]))}
    ),
    "gather": case(
        lambda m, x: x.gather(3, m.held.tensor.expand(*x.shape[:3], 2)), lambda: {"held": Held(torch.tensor([1, 3]))}
    ),
    "samples": case(
        lambda m, x: F.grid_sample(x, m.held.tensor.expand(len(x), -1, -1, -1), align_corners=False),
        lambda: {"held": Held(grid(2, 4))},
    ),
    "samples in 3d": case(
        lambda m, x: F.grid_sample(x, m.held.tensor.expand(len(x), -1, -1, -1, -1), align_corners=False),
        lambda: {"held": Held(grid(3, 4))},
        rank=3,
    ),
}

SPATIAL: dict[str, Case] = {
    "average in 1d": case(lambda m, x: F.adaptive_avg_pool1d(F.avg_pool1d(x, 2), 4), rank=1),
    "maximum in 1d": case(lambda m, x: F.adaptive_max_pool1d(F.max_pool1d(x, 2), 4), rank=1),
    "adaptive maximum": case(lambda m, x: F.adaptive_max_pool2d(x, 4)),
    "average in 3d": case(lambda m, x: F.avg_pool3d(x, 2), rank=3),
    "adaptive average in 3d": case(lambda m, x: F.adaptive_avg_pool3d(x, 2), rank=3),
    "maximum in 3d": case(lambda m, x: F.max_pool3d(x, 2), rank=3),
    "adaptive maximum in 3d": case(lambda m, x: F.adaptive_max_pool3d(x, 2), rank=3),
    "max unpooling": case(lambda m, x: unpooled(x, 2)),
    "max unpooling in 3d": case(lambda m, x: unpooled(x, 3), rank=3),
    **{
        f"{mode} in {rank}d": case(lambda m, x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode), rank=rank)
        for mode, ranks in {
            "nearest": (1, 3),
            "nearest-exact": (1, 2, 3),
            "linear": (1,),
            "bilinear": (2,),
            "trilinear": (3,),
            "bicubic": (2,),
        }.items()
        for rank in ranks
    },
    "bilinear, smoothed": case(lambda m, x: F.interpolate(x, size=5, mode="bilinear", antialias=True)),
    "bicubic, smoothed": case(lambda m, x: F.interpolate(x, size=5, mode="bicubic", antialias=True)),
    **{
        f"padding, {mode} in {rank}d": case(
            lambda m, x, mode=mode, rank=rank: F.pad(x, (1, 1) * rank, mode=mode), rank=rank
        )
        for mode in ("reflect", "replicate", "circular")
        for rank in (1, 2, 3)
    },
}

REDUCED: dict[str, Case] = {
    "extremes over space": case(lambda m, x: x - x.amax((2, 3), keepdim=True) + x.amin(3, keepdim=True)),
    "least along an axis": case(lambda m, x: x - x.min(3, keepdim=True).values - 0.1 * x.argmin(3, keepdim=True)),
    "greatest along an axis": case(lambda m, x: x - x.max(3, keepdim=True).values - 0.1 * x.argmax(3, keepdim=True)),
    "least of all": case(lambda m, x: x - x.min(), mixing="min"),
    "variance": case(lambda m, x: x + x.var((2, 3), keepdim=True)),
    "spread": case(lambda m, x: x + x.std((2, 3), keepdim=True)),
    "variance and mean": case(lambda m, x: x + sum(torch.var_mean(x, (2, 3), keepdim=True))),
    "spread and mean": case(lambda m, x: x + sum(torch.std_mean(x, (2, 3), keepdim=True))),
    "lengths": case(lambda m, x: F.normalize(x, dim=1), mixing="linalg_vector_norm"),
    "product along an axis": case(lambda m, x: x + (x * 0.1 + 1).prod(3, keepdim=True)),
    "all along an axis": case(lambda m, x: x * (x > 0).all(3, keepdim=True) + x),
    "any along an axis": case(lambda m, x: x * (x > 1).any(3, keepdim=True) + x),
    "logarithm of sums": case(lambda m, x: x - x.logsumexp(3, keepdim=True)),
    "sums so far": case(lambda m, x: x.cumsum(3)),
    "sums so far over channels": case(lambda m, x: x.cumsum(1), mixing="cumsum"),
    "logarithm of softmax over channels": case(lambda m, x: x.log_softmax(1), mixing="_log_softmax"),
    "logarithm of softmax over space": case(lambda m, x: x.flatten(2).log_softmax(2).view_as(x)),
    "statistics without a module": case(lambda m, x: torch._native_batch_norm_legit(x, None, None, True, 0.1, 1e-5)[0]),
}

PRODUCTS: dict[str, Case] = {
    "attention with an added term": case(attended),
    "filters of a length": case(
        lambda m, x: m.c(x),
        lambda: {"c": nn.utils.parametrizations.weight_norm(conv(8, 4))},
        sizes={"c": 4},
        mixing="_weight_norm_interface",
        after=4,
    ),
    "columns of a length": case(
        lambda m, x: m.c(x),
        lambda: {"c": nn.utils.parametrizations.weight_norm(conv(8, 4), dim=1)},
        sizes={"c": 4},
        mixing="norm",
        after=4,
    ),
}

VARIANTS: dict[str, Case] = MADE | POINTWISE | MOVED | SPATIAL | REDUCED | PRODUCTS
