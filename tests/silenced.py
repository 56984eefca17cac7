"""What the tests of graph and surgery share: random plans and statistics, the comparison with the silenced original."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from prunus.graph.channels import ChannelGraph, ChannelGroup, Keep
from prunus.plan import PruningPlan, plan_from_keep
from prunus.surgery import selections
from prunus.verify import silence


def random_keep(graph: ChannelGraph, rng: np.random.Generator) -> Keep:
    """Keep as many random channels of every piece of every group as some level, drawn at random, says."""
    keep = graph.keep_all()
    for group in graph.groups:
        _keep_level(keep, group, group.counts[rng.integers(len(group.counts))], rng)
    return keep


def random_plan(graph: ChannelGraph, rng: np.random.Generator) -> PruningPlan:
    """Keep random channels of every group, as many as the network can have."""
    return plan_from_keep(graph, random_keep(graph, rng))


def half_plan(graph: ChannelGraph, seed: int = 0) -> PruningPlan:
    """Keep a random half of every group."""
    keep, rng = graph.keep_all(), np.random.default_rng(seed)
    for group in graph.groups:
        counts = group.counts
        _keep_level(keep, group, counts[(len(counts) - 1) // 2], rng)
    return plan_from_keep(graph, keep)


def _keep_level(keep: Keep, group: ChannelGroup, level: np.ndarray, rng: np.random.Generator) -> None:
    for piece, count in enumerate(level):
        channels = group.channels[group.piece_of == piece]
        keep[rng.permutation(channels)[count:]] = False


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every affine parameter and running statistic a value away from 0 and 1, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return model


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return max |found − reference| / max |reference|."""
    return float((found - reference).abs().max() / reference.abs().max().clamp_min(1e-300))


def worst_difference(
    model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan, x: Tensor, *, training: bool
) -> float:
    """Compare outputs and the gradients of every kept element with the silenced original's, in float64: the worst."""
    chosen = selections(model, graph, plan)
    reference = silence(model, graph, plan).double().train(training)
    small = copy.deepcopy(pruned).double().train(training)
    for module in (*reference.modules(), *small.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it draws other numbers for another shape
    expected, got = reference(x.double()), small(x.double())
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    worst = relative_error(got.detach(), expected.detach())
    kept = dict(small.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in reference.parameters() if p.grad is not None)
    for name, parameter in reference.named_parameters():
        if parameter.grad is None:  # forward does not use it
            assert kept[name].grad is None
            continue
        wanted = chosen[name].take(parameter.grad)
        grad = kept[name].grad
        assert grad is not None and grad.shape == wanted.shape, name
        if wanted.numel():
            worst = max(worst, float((grad - wanted).abs().max()) / scale)
    return worst
