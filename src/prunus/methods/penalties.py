"""Sparse training: after every step of the optimiser, weights of channels that may go are drawn towards zero.

A penalty is a *proximal step* (Parikh and Boyd 2014, "Proximal algorithms"): it does in closed form what the gradient
of a norm cannot, which is to reach zero and stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from prunus.graph.channels import ChannelGraph

Penalty = Callable[[Mapping[str, Tensor], ChannelGraph, float], None]
"""Draws the tensors of a network, by name, towards zero in place, by a threshold ≥ 0 (learning rate times ρ)."""


def group_lasso(tensors: Mapping[str, Tensor], graph: ChannelGraph, threshold: float) -> None:
    """Shorten every filter that may go by `threshold`: the proximal step of ρ·Σ‖W_c‖₂ (Yuan and Lin 2006).

    A filter that is no longer than that becomes zero.
    """
    for layer in graph.layers:
        free = torch.from_numpy(layer.channels >= 0)
        if not bool(free.any()):
            continue
        weight = tensors[layer.weight]
        lengths = layer.filters(weight).flatten(1).norm(dim=1)
        factor = torch.where(free.to(weight.device), (1 - threshold / lengths.clamp_min(1e-12)).clamp_min(0), 1)
        if layer.transposed:  # (C_in, C_out / groups, …): the filters of each group lie along the second axis
            factor = factor.view(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1).flatten(0, 1)
            weight.mul_(factor.view(*factor.shape, *[1] * (weight.dim() - 2)))
        else:
            weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))


def bn_scale(tensors: Mapping[str, Tensor], graph: ChannelGraph, threshold: float) -> None:
    """Draw every γ of a channel that may go towards zero by `threshold`: the proximal step of ρ·Σ|γ_c|.

    This is the sparse training of Network Slimming (Liu et al. 2017, arXiv:1708.06519). A layer without an affine
    BatchNorm right behind it is left alone.
    """
    for layer in graph.layers:
        if layer.norm is None or layer.norm.weight is None:
            continue
        free = torch.from_numpy(layer.channels >= 0)
        gamma = tensors[layer.norm.weight]
        gamma.copy_(torch.where(free.to(gamma.device), torch.nn.functional.softshrink(gamma, threshold), gamma))


PENALTIES: dict[str, Penalty] = {"bn_scale": bn_scale, "group_lasso": group_lasso}


def apply_penalty(model: nn.Module, graph: ChannelGraph, penalty: Penalty, threshold: float) -> None:
    """Make one proximal step on a network that `graph` was traced from; nothing for a threshold of 0."""
    if threshold > 0:
        with torch.no_grad():
            penalty(dict(model.named_parameters(remove_duplicate=False)), graph, threshold)
