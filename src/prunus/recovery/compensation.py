"""Fold what removed channels contributed on average into what their consumers add anyway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunus.errors import TraceError
from prunus.graph.channels import ChannelGraph
from prunus.graph.members import named_tensors
from prunus.plan import PruningPlan
from prunus.recovery.batches import Batches, device_of
from prunus.recovery.consumers import Consumer, find_consumers
from prunus.recovery.report import RecoveredLayer, RecoveryReport
from prunus.recovery.watching import LayerCall, random_state_kept, result_copy, run_watched, scratch_copy


def compensate(
    model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan, batches: Tensor | Iterable[Tensor]
) -> tuple[nn.Module, RecoveryReport]:
    """Return a copy of a pruned network whose layers have in their constants what removed channels gave on average.

    For each filter that is Σ_c mean_c · Σ W[:, c] over its removed input channels and the kernel, with the mean of the
    channel as the layer sees it, over the examples and positions of the calibration data, in the original. It goes into
    the layer's bias; without one, into the running mean of the BatchNorm right behind (mean − contribution); where
    there is neither, nothing is invented: the layer is left, and the report says so. For a channel that is constant
    this is exact where the kernel meets no padding. Call it right after the removal: `reconstruct` does more, and
    `recalibrate` afterwards replaces what went into running means.

    Grouped convolutions and linear layers after a flatten are compensated alike. A depthwise convolution loses nothing:
    its filters go with their channels. Transposed convolutions and weights that are used several times are left.

    Args:
        model: the original; it runs once over the data, in evaluation mode. Neither network is changed.
        pruned: what `prunus.remove` made of it.
        graph: the original's channel graph.
        plan: which channels stayed.
        batches: inputs (N, C, H, W) as the networks take them, or an iterable of such.

    Returns:
        The network, in the modes of `pruned`, and what was done to which layer.

    Raises:
        ConfigError: there is no batch, or `batches` can be gone through only once.
        PlanError: the plan does not fit the graph.
        SurgeryError: the model, the graph and the pruned network do not belong together.
    """
    data = Batches(batches, device_of(model))
    with random_state_kept():
        whole = scratch_copy(model)
        consumers = find_consumers(whole, pruned, graph, plan, next(data.parts())[:1])
        means = _input_means(whole, {one.weight for one in consumers.found if one.constant}, data)
    made = result_copy(pruned)
    held, weights = dict(named_tensors(made)), dict(named_tensors(whole))
    done: list[RecoveredLayer] = []
    for one in consumers.found:
        if one.constant is None:
            done.append(RecoveredLayer(one.name, (), one.why_none))
            continue
        constant = _contribution(one, weights[one.weight].detach().double(), means[one.weight])
        with torch.no_grad():
            target = held[one.constant]
            target.add_((-constant if one.is_mean else constant).to(target))
        done.append(RecoveredLayer(one.name, (one.constant,)))
    return made, RecoveryReport((*done, *consumers.left))


@dataclass
class _Sums:
    """Sums of a layer's input channels over examples and positions, (C_in,), and how many there were."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        others = [axis for axis in range(x.dim()) if axis != 1]
        self.total = self.total + x.cpu().double().sum(others)
        self.count += x.numel() // x.shape[1]


def _input_means(model: nn.Module, weights: set[str], data: Batches) -> dict[str, Tensor]:
    """Return the mean of each input channel of these layers, (C_in,), in float64 on the CPU."""
    sums = {weight: _Sums() for weight in weights}

    def heard(call: LayerCall) -> None:
        if call.weight in sums:
            sums[call.weight].add(call.x)

    for part in data.parts():
        run_watched(model, part, heard)
    missed = [weight for weight, found in sums.items() if not found.count]
    if missed:
        raise TraceError(f"the layer of {missed[0]} does not run on all calibration batches.")
    return {weight: found.total / found.count for weight, found in sums.items()}


def _contribution(one: Consumer, weight: Tensor, means: Tensor) -> Tensor:
    """Return what the removed inputs gave each kept filter on average, (kept filters,)."""
    summed = weight.cpu().flatten(2).sum(2) if weight.dim() > 2 else weight.cpu()  # (C_out, C_in / groups)
    columns = summed.shape[1]
    group = one.rows // (one.filters // (len(means) // columns))
    seen = means.view(-1, columns)[group]  # (kept filters, C_in / groups)
    return (summed[one.rows] * seen * one.lost).sum(1)
