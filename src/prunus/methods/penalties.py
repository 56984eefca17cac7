"""Sparse training: after every step of the optimiser, weights of channels that may go are drawn towards zero.

The norms make a *proximal step* (Parikh and Boyd 2014, "Proximal algorithms"): it does in closed form what the gradient
of a norm cannot, which is to reach zero and stay there. The sparsity degree, which is smooth, makes a gradient step of
its own, apart from the optimiser's, so that momentum does not gather it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph, Layer

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Penalty:
    """A sum over the channels that may go, of a network's tensors by name.

    `value` computes it, 0-dim. `step` lowers it in place by a step ≥ 0, the learning rate times ρ.
    """

    value: Callable[[Tensors, ChannelGraph], Tensor]
    step: Callable[[Tensors, ChannelGraph, float], None]


def lasso_value(tensors: Tensors, graph: ChannelGraph) -> Tensor:
    """Return Σ‖W_c‖₂ over the filters that may go."""
    return _total(
        layer.filters(tensors[layer.weight]).flatten(1).norm(dim=1)[free] for layer, free in _free(tensors, graph)
    )


def group_lasso(tensors: Tensors, graph: ChannelGraph, threshold: float) -> None:
    """Shorten every filter that may go by `threshold`: the proximal step of ρ·Σ‖W_c‖₂ (Yuan and Lin 2006).

    A filter that is no longer than that becomes zero.
    """
    for layer, free in _free(tensors, graph):
        weight = tensors[layer.weight]
        lengths = layer.filters(weight).flatten(1).norm(dim=1)
        factor = torch.where(free, (1 - threshold / lengths.clamp_min(1e-12)).clamp_min(0), 1)
        weight.mul_(_laid_out(factor, layer, weight))


def gamma_value(tensors: Tensors, graph: ChannelGraph) -> Tensor:
    """Return Σ|γ_c| over the channels that may go and have a γ."""
    return _total(gamma[free].abs() for gamma, free in _gammas(tensors, graph))


def bn_scale(tensors: Tensors, graph: ChannelGraph, threshold: float) -> None:
    """Draw every γ of a channel that may go towards zero by `threshold`: the proximal step of ρ·Σ|γ_c|.

    This is the sparse training of Network Slimming (Liu et al. 2017, arXiv:1708.06519). A layer without an affine
    BatchNorm right behind it is left alone.
    """
    for gamma, free in _gammas(tensors, graph):
        gamma.copy_(torch.where(free, torch.nn.functional.softshrink(gamma, threshold), gamma))


def soft_degree(filters: Tensor, t: float = 0.1, sharpness: float = 1.0) -> Tensor:
    """Return the soft sparsity degree s̃ of each filter, (C_out,) in (0, 1], for `filters` (C_out, n).

    s̃_c is the mean over W_c of 1 / (1 + |w/τ|^2k), with τ = t · RMS of all filters, which counts as a constant, and k
    the sharpness: a sigmoid in log |w|, 1 at zero and one half at τ. For k → ∞ it is the share of weights below τ, the
    weight degree of the criterion channel_sparsity. With k = 1 a weight's part is one less the loss of Geman and
    McClure (1987). Our reconstruction, as the criterion is.
    """
    return _nearness(filters, t, sharpness).mean(1)


def degree_value(tensors: Tensors, graph: ChannelGraph, t: float = 0.1) -> Tensor:
    """Return Σ(1 − s̃_c²) over the filters that may go, with the soft sparsity degree s̃."""
    return _total(
        1 - soft_degree(layer.filters(tensors[layer.weight]).flatten(1), t)[free].square()
        for layer, free in _free(tensors, graph)
    )


def sparsity_degree(tensors: Tensors, graph: ChannelGraph, step: float, t: float = 0.1) -> None:
    """Make a gradient step of ρ·Σ(1 − s̃_c²), s̃ the soft sparsity degree: sparse channels become sparser.

    A channel is drawn in proportion to its s̃: those that are sparse already give up what they have left, and dense
    ones, which the network uses, stay. To *minimise* Σ s̃_c² as it stands would do the reverse and fill sparse channels
    up, so that the square enters with a minus; the 1 only makes the penalty positive.

    The gradient is 4·s̃_c·s²·w / (n·τ²), with s = 1 / (1 + (w/τ)²) and n weights a filter. A weight never goes past
    zero.
    """
    for layer, free in _free(tensors, graph):
        weight = tensors[layer.weight]
        filters = layer.filters(weight).flatten(1)
        squared = _squared_threshold(filters, t)
        rate = torch.where(free, 4 * step * soft_degree(filters, t) / filters.shape[1], 0)
        near = 1 / (1 + weight.square() / squared)
        weight.mul_((1 - _laid_out(rate, layer, weight) * near.square() / squared).clamp_min(0))


def sparsity_degree_at(t: float) -> Penalty:
    """Return the penalty sparsity_degree with another threshold t > 0 than 0.1."""
    return Penalty(
        lambda tensors, graph: degree_value(tensors, graph, t),
        lambda tensors, graph, step: sparsity_degree(tensors, graph, step, t),
    )


PENALTIES: dict[str, Penalty] = {
    "bn_scale": Penalty(gamma_value, bn_scale),
    "group_lasso": Penalty(lasso_value, group_lasso),
    "sparsity_degree": Penalty(degree_value, sparsity_degree),
}


def apply_penalty(model: nn.Module, graph: ChannelGraph, penalty: Penalty, threshold: float) -> None:
    """Make one step of a penalty on a network that `graph` was traced from; nothing for a threshold of 0."""
    if threshold > 0:
        with torch.no_grad():
            penalty.step(named(model), graph, threshold)


def penalty_value(model: nn.Module, graph: ChannelGraph, penalty: Penalty) -> float:
    """Return what a penalty, without ρ, comes to on a network that `graph` was traced from."""
    with torch.no_grad():
        return float(penalty.value(named(model), graph))


def known_name(what: str, name: str, table: Mapping[str, object]) -> None:
    """Refuse a name that a table does not have; the ConfigError gives the nearest and all that there are."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no {what} {name!r}.{hint} There are: {', '.join(table)}.")


def named(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters under all of their names."""
    return dict(model.named_parameters(remove_duplicate=False))


def _free(tensors: Tensors, graph: ChannelGraph) -> Iterator[tuple[Layer, Tensor]]:
    """Go through the layers that have filters which may go, with a flag for each filter, (C_out,)."""
    for layer in graph.layers:
        free = torch.from_numpy(layer.channels >= 0)
        if bool(free.any()):
            yield layer, free.to(tensors[layer.weight].device)


def _gammas(tensors: Tensors, graph: ChannelGraph) -> Iterator[tuple[Tensor, Tensor]]:
    for layer, free in _free(tensors, graph):
        if layer.norm is not None and layer.norm.weight is not None:
            yield tensors[layer.norm.weight], free


def _total(parts: Iterator[Tensor]) -> Tensor:
    return sum((part.sum() for part in parts), torch.zeros(()))


def _squared_threshold(filters: Tensor, t: float) -> Tensor:
    """Return τ², and something above zero where all weights are zero."""
    smallest = torch.finfo(filters.dtype).tiny
    return (t**2 * filters.detach().square().mean()).clamp_min(smallest)


def _nearness(filters: Tensor, t: float, sharpness: float) -> Tensor:
    return 1 / (1 + (filters.square() / _squared_threshold(filters, t)) ** sharpness)


def _laid_out(values: Tensor, layer: Layer, weight: Tensor) -> Tensor:
    """Lay one value a filter out so that it goes over the layer's weight."""
    if layer.transposed:  # (C_in, C_out / groups, …): the filters of each group lie along the second axis
        values = values.view(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1).flatten(0, 1)
    return values.view(*values.shape, *[1] * (weight.dim() - values.dim()))
