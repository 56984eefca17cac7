"""Refit what is left of each layer's weights so that its outputs stay what they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.graph.members import named_tensors
from prunus.plan import PruningPlan
from prunus.recovery.batches import Batches, device_of
from prunus.recovery.capturing import Captured, capture
from prunus.recovery.consumers import Consumer, find_consumers
from prunus.recovery.least_squares import NormalEquations
from prunus.recovery.patches import inputs_at, positions_of, values_at
from prunus.recovery.report import RecoveredLayer, RecoveryReport
from prunus.recovery.watching import random_state_kept, result_copy, scratch_copy

RIDGES = (1e-9, 1e-3, 1e-2, 1e-1, math.inf)
"""What is tried; the last keeps the weights and fits the constant alone."""

_CHECKED = 5  # every so many examples one is kept for the choice of a ridge
_NUMBERS_AT_ONCE = 2**22  # of patches in float64: 32 MiB


def reconstruct(
    model: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Tensor | Iterable[Tensor],
    *,
    ridge: float | None = None,
    max_positions: int = 20_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[nn.Module, RecoveryReport]:
    """Return a copy of a pruned network whose remaining weights are refitted to give what the original's layers give.

    For each layer that lost input channels, in the order of execution: its inputs are those of the pruned network with
    all layers before it refitted already, its targets the original layer's outputs for the filters that stayed, before
    any BatchNorm. The weights, and a constant, are found by least squares, in float64, from sums over the data (He
    2017, arXiv:1707.06168, its second step; ThiNet, arXiv:1707.06342). Where the output is added to something that was
    there before the layer ran (the shortcut of a residual block), the targets make good what that has lost, so that it
    is the sum that is kept (He 2017, its multi-branch networks).

    The BatchNorm behind a layer stays as it is but for its running mean, which takes the constant of a layer without
    bias; where there is neither, the fit goes without a constant. Grouped convolutions are refitted group by group.
    Depthwise ones, and all layers that lost no input, are left as they are; transposed convolutions and weights that
    are used several times are left and reported. If BatchNorms are recalibrated as well, do it afterwards.

    Memory beside copies of both networks and one forward pass: for a layer with p inputs a filter (C_in / groups · kH ·
    kW) in g groups and q filters, twice 8 · g · p · (p + q / g) bytes for the sums, and about 100 MB. Time: two forward
    passes over all data as far as the layer, and `max_positions` · g · p · (p + q / g) multiply-adds.

    Args:
        model: the original; it runs in evaluation mode. Neither network is changed.
        pruned: what `prunus.remove` made of it, compensated or not.
        graph: the original's channel graph.
        plan: which channels stayed.
        batches: inputs (N, C, H, W) as the networks take them, or an iterable of such.
        ridge: how hard weights are held where they are, relative to the mean square of an input; ≥ 0, zero is plain
            least squares. None tries RIDGES, fitted on four fifths of the examples, and takes for each layer what is
            best on the others; where all make it worse, as with too few images, the layer is left. With fewer than five
            examples it is 1e-3.
        max_positions: how many output positions, over all examples together, a layer is fitted on at most; drawn
            without repetition, as many for every example.
        seed: for that draw.
        progress: is told how many layers are done, and of how many.

    Returns:
        The network, in the modes of `pruned`, and what was done to which layer, with the errors before and after.

    Raises:
        ConfigError: there is no batch, `batches` can be gone through only once, or an option is out of range.
        PlanError: the plan does not fit the graph.
        SurgeryError: the model, the graph and the pruned network do not belong together.
    """
    if ridge is not None and not ridge >= 0:
        raise ConfigError(f"ridge is {ridge!r}; it is None or at least 0, relative to the inputs' mean square.")
    if max_positions < 1:
        raise ConfigError(f"max_positions is {max_positions!r}; it is at least 1, and better some thousands.")
    data = Batches(batches, device_of(model))
    with random_state_kept():
        whole = scratch_copy(model)
        consumers = find_consumers(whole, pruned, graph, plan, next(data.parts())[:1])
        small = scratch_copy(pruned)
        refit = _Refit(whole, small, data, ridge, max_positions, seed)
        done: list[RecoveredLayer] = []
        for number, one in enumerate(consumers.found):
            if progress is not None:
                progress(number, len(consumers.found))
            done.append(refit(one))
    if progress is not None:
        progress(len(consumers.found), len(consumers.found))
    made = result_copy(pruned)
    values = dict(named_tensors(small))
    held = dict(named_tensors(made))
    with torch.no_grad():
        for name in (name for layer in done for name in layer.changed):
            held[name].copy_(values[name])
    return made, RecoveryReport((*done, *consumers.left))


class _Refit:
    """Refits the layers of `small` one after the other, each on what the ones before now give it."""

    def __init__(
        self, whole: nn.Module, small: nn.Module, data: Batches, ridge: float | None, max_positions: int, seed: int
    ) -> None:
        self.whole, self.small, self.data = whole, small, data
        self.tensors, self.originals = dict(named_tensors(small)), dict(named_tensors(whole))
        self.ridge = ridge
        self.share = max_positions / data.count()  # of positions an example
        self.seed = seed

    def __call__(self, one: Consumer) -> RecoveredLayer:
        weight = self.tensors[one.weight]
        target = None if one.constant is None else self.tensors[one.constant]
        try:
            sums, check = self._measured(one, weight)
        except LookupError:
            return RecoveredLayer(one.name, (), "the layer does not run on all calibration batches")
        start = weight.detach().to(sums.x).reshape(len(sums.x), -1, weight[0].numel())
        old = torch.zeros_like(sums.y)
        if target is not None:
            now = target.detach().to(old)
            old = (self._mean(one).to(old) - now if one.is_mean else now).view_as(old)
        ridge = self._chosen(sums, check, (start, old), one.takes_constant)
        if ridge is None:
            return RecoveredLayer(one.name, (), "every fit is worse on images that it has not seen; give more of them")
        sums.join(check)
        moments = sums.moments()
        fitted, constant = moments.solve(start, ridge=ridge, intercept=one.takes_constant)
        size = moments.size or 1.0
        before, after = moments.error(start, old) / size, moments.error(fitted, constant) / size
        self._write(one, weight, fitted, constant.flatten())
        changed = (one.weight,) if one.constant is None else (one.weight, one.constant)
        return RecoveredLayer(one.name, changed, one.why_none, before, after)

    def _chosen(
        self, sums: NormalEquations, check: NormalEquations, now: tuple[Tensor, Tensor], intercept: bool
    ) -> float | None:
        """Return the ridge whose fit is best on the examples that it has not seen; None where the layer as it is is."""
        if self.ridge is not None:
            return self.ridge
        if not check.count or not sums.count:
            return RIDGES[1]
        known, unknown = sums.moments(), check.moments()
        best, error = None, unknown.error(*now)
        for ridge in RIDGES:
            found = unknown.error(*known.solve(now[0], ridge=ridge, intercept=intercept))
            if found < error:
                best, error = ridge, found
        return best

    def _write(self, one: Consumer, weight: Tensor, fitted: Tensor, constant: Tensor) -> None:
        with torch.no_grad():
            weight.copy_(fitted.reshape(weight.shape))
            if one.constant is not None:
                target = self.tensors[one.constant]
                target.copy_(self._mean(one).to(constant) - constant if one.is_mean else constant)

    def _mean(self, one: Consumer) -> Tensor:
        """Return the original's running mean of the kept filters: one that was compensated holds a constant already."""
        assert one.constant is not None
        mean = self.originals[one.constant]
        return mean[one.rows.to(mean.device)]

    def _measured(self, one: Consumer, weight: Tensor) -> tuple[NormalEquations, NormalEquations]:
        """Sum up what the pruned layer sees and what it should give, at the same positions.

        The second sums are over the examples that are kept for a check; none where the ridge is given.
        """
        generator = torch.Generator().manual_seed(self.seed)
        rows = one.rows.to(self.data.device)
        sums: list[NormalEquations] = []
        first = 0  # the number of a part's first example
        for part in self.data.parts():
            wanted, seen = capture(self.whole, part, one.weight), capture(self.small, part, one.weight)
            groups, positions = seen.call.groups, positions_of(seen.call)
            if not sums:
                device = "cpu" if weight.device.type == "mps" else weight.device
                size = (groups, weight[0].numel(), weight.shape[0] // groups)
                sums = [NormalEquations(*size, device) for _ in range(2)]
            for index in self._sampled(positions, len(part), weight[0].numel() * groups, generator):
                example = first + index // (positions // len(part))
                checked = (example % _CHECKED == _CHECKED - 1) & (self.ridge is None)
                for own, some in zip(sums, (index[~checked], index[checked]), strict=True):
                    if len(some):
                        some = some.to(self.data.device)
                        x = inputs_at(seen.call, some, tuple(weight.shape[2:])).to(own.x)
                        y = _targets(wanted, seen, some, rows).to(own.x).view(len(some), groups, -1)
                        own.add(x.movedim(1, 0), y.movedim(1, 0))
            first += len(part)
        return sums[0], sums[1]

    def _sampled(self, positions: int, examples: int, width: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Draw output positions, each at most once, as many for every example; some at a time."""
        count = min(positions, max(1, round(self.share * examples)))
        index = torch.randperm(positions, generator=generator)[:count] if count < positions else torch.arange(positions)
        yield from index.split(max(1, _NUMBERS_AT_ONCE // width))


def _targets(wanted: Captured, seen: Captured, index: Tensor, rows: Tensor) -> Tensor:
    """Return what the pruned layer should give at some positions, (positions, kept filters), in float64.

    That is what the original's kept filters give; where their output is added to something that was there before, also
    what that has lost meanwhile, so that the sum is what it was (He 2017, on networks with
    several branches).
    """
    kept = values_at(wanted.call.out, index)[:, rows].double()
    if wanted.beside is None or seen.beside is None:
        return kept
    missing = values_at(wanted.beside, index)[:, rows] - values_at(seen.beside, index)
    if seen.scale is None:
        return kept + missing
    usable = seen.scale.abs() > 1e-3 * seen.scale.abs().max()
    return kept + torch.where(usable, missing.double() / seen.scale.double(), 0)
