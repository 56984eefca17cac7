"""Refit what is left of each layer's weights so that its outputs stay what they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.graph.members import named_tensors
from prunus.plan import PruningPlan
from prunus.recovery.batches import Batches, device_of
from prunus.recovery.capturing import Captured, capture_all
from prunus.recovery.consumers import Consumer, find_consumers
from prunus.recovery.least_squares import NormalEquations
from prunus.recovery.patches import inputs_at, positions_of, values_at
from prunus.recovery.report import RecoveredLayer, RecoveryReport
from prunus.recovery.rerunning import Rerun
from prunus.recovery.watching import random_state_kept, result_copy, scratch_copy

RIDGES = (1e-9, 1e-3, 1e-2, 1e-1, math.inf)
"""What is tried; the last keeps the weights and fits the constant alone."""

_CHECKED = 5  # every so many examples one is kept for the choice of a ridge
_NUMBERS_AT_ONCE = 2**22  # of patches in float64: 32 MiB
_REMEMBERED = 2**27  # bytes of targets
_KEPT = 2**28  # bytes of what each network has computed so far


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
    kW) in g groups and q filters, twice 8 · g · p · (p + q / g) bytes for the sums, and at most about 800 MB. Time: one
    or two forward passes of both networks over all data where 256 MiB hold what lies between two layers, else for each
    layer a pass as far as that; and `max_positions` · g · p · (p + q / g) multiply-adds a layer.

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
        refit = _Refit(_Targets(whole, consumers.found, data, max_positions, seed), small, data, ridge)
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


class _Targets:
    """What the original gives at the output positions that layers are fitted on; it runs once for many layers.

    Positions are drawn without repetition, as many for every example, by a generator that each layer has for itself.
    """

    def __init__(
        self, whole: nn.Module, consumers: Sequence[Consumer], data: Batches, max_positions: int, seed: int
    ) -> None:
        self.whole, self.consumers, self.data, self.seed = whole, consumers, data, seed
        self.count = data.count()
        self.share = max_positions / self.count  # of positions an example
        self.originals = dict(named_tensors(whole))
        self.known: dict[str, list[_Wanted | None]] = {}
        self.reruns: Rerun | None = None

    def of(self, one: Consumer) -> list[_Wanted | None]:
        """Return a layer's targets, one for each part of the data; None for a part on which the layer does not run.

        They are forgotten with the first call, and layers have to be asked for in the order of `consumers`.
        """
        if one.weight not in self.known:
            self._run(self.consumers[self.consumers.index(one) :])
        return self.known.pop(one.weight)

    def _run(self, left: Sequence[Consumer]) -> None:
        """Remember the targets of as many layers as there is room for, of the first in any case."""
        values = 2 * max(self.count, round(self.share * self.count))  # of a filter: its outputs, and what is beside
        room = _REMEMBERED
        consumers: list[Consumer] = []
        for one in left:
            room -= values * len(one.rows) * self.originals[one.weight].element_size()
            if consumers and room < 0:
                break
            consumers.append(one)
        if self.reruns is None and len(consumers) < len(left):
            self.reruns = Rerun(self.whole, _KEPT)
        rows = {one.weight: one.rows.to(self.data.device) for one in consumers}
        generators = {weight: torch.Generator().manual_seed(self.seed) for weight in rows}
        self.known |= {weight: [] for weight in rows}
        for number, part in enumerate(self.data.parts()):
            found: dict[str, _Wanted] = {}

            def heard(weight: str, captured: Captured, part: Tensor = part, found: dict[str, _Wanted] = found) -> None:
                positions = positions_of(captured.call)
                index = _drawn(positions, max(1, round(self.share * len(part))), generators[weight])
                at = index.to(self.data.device)
                kept = values_at(captured.call.out, at)[:, rows[weight]]
                beside = None if captured.beside is None else values_at(captured.beside, at)[:, rows[weight]]
                found[weight] = _Wanted(index, kept, beside)

            if self.reruns is None:
                capture_all(self.whole, part, rows, heard)
            else:
                self.reruns.capture_all(number, part, list(rows), heard)
            for weight, parts in self.known.items():
                parts.append(found.get(weight))


@dataclass(frozen=True)
class _Wanted:
    """Of one part of the data: output positions, what the original's kept filters give there, and what is beside it."""

    index: Tensor
    kept: Tensor
    beside: Tensor | None


class _Refit:
    """Refits the layers of `small` one after the other, each on what the ones before now give it."""

    def __init__(self, targets: _Targets, small: nn.Module, data: Batches, ridge: float | None) -> None:
        self.targets, self.data = targets, data
        self.small = Rerun(small, _KEPT)
        self.tensors = dict(named_tensors(small))
        self.ridge = ridge

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
        mean = self.targets.originals[one.constant]
        return mean[one.rows.to(mean.device)]

    def _measured(self, one: Consumer, weight: Tensor) -> tuple[NormalEquations, NormalEquations]:
        """Sum up what the pruned layer sees and what it should give, at the same positions.

        The second sums are over the examples that are kept for a check; none where the ridge is given.
        """
        sums: list[NormalEquations] = []
        first = 0  # the number of a part's first example
        for number, (part, wanted) in enumerate(zip(self.data.parts(), self.targets.of(one), strict=True)):
            if wanted is None:
                raise LookupError(one.weight)
            seen = self.small.capture(number, part, one.weight)
            groups, positions = seen.call.groups, positions_of(seen.call)
            if not sums:
                device = "cpu" if weight.device.type == "mps" else weight.device
                size = (groups, weight[0].numel(), weight.shape[0] // groups)
                sums = [NormalEquations(*size, device) for _ in range(2)]
            numbers = torch.arange(len(wanted.index))
            for chosen in numbers.split(max(1, _NUMBERS_AT_ONCE // (weight[0].numel() * groups))):
                example = first + wanted.index[chosen] // (positions // len(part))
                checked = (example % _CHECKED == _CHECKED - 1) & (self.ridge is None)
                for own, some in zip(sums, (chosen[~checked], chosen[checked]), strict=True):
                    if len(some):
                        at = wanted.index[some].to(self.data.device)
                        x = inputs_at(seen.call, at, tuple(weight.shape[2:])).to(own.x)
                        y = _target(wanted, seen, some, at).to(own.x).view(len(some), groups, -1)
                        own.add(x.movedim(1, 0), y.movedim(1, 0))
            first += len(part)
        return sums[0], sums[1]


def _drawn(positions: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw output positions, each at most once."""
    return torch.randperm(positions, generator=generator)[:count] if count < positions else torch.arange(positions)


def _target(wanted: _Wanted, seen: Captured, some: Tensor, at: Tensor) -> Tensor:
    """Return what the pruned layer should give, (positions, kept filters), in float64.

    That is what the original's kept filters give; where their output is added to something that was there before, also
    what that has lost meanwhile, so that the sum is what it was (He 2017, on networks with several branches).

    Args:
        wanted: of all positions.
        seen: the pruned layer's call.
        some: which of the positions.
        at: the same, as places in the output.
    """
    some = some.to(at.device)
    kept = wanted.kept[some].double()
    if wanted.beside is None or seen.beside is None:
        return kept
    missing = wanted.beside[some] - values_at(seen.beside, at)
    if seen.scale is None:
        return kept + missing
    usable = seen.scale.abs() > 1e-3 * seen.scale.abs().max()
    return kept + torch.where(usable, missing.double() / seen.scale.double(), 0)
