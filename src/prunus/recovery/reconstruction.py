"""Refit what is left of each layer's weights so that its outputs stay what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.graph.members import named_tensors
from prunus.plan import PruningPlan
from prunus.recovery.batches import Batches, device_of
from prunus.recovery.consumers import Consumer, find_consumers
from prunus.recovery.least_squares import NormalEquations
from prunus.recovery.patches import inputs_at, outputs_at, positions_of
from prunus.recovery.report import RecoveredLayer, RecoveryReport
from prunus.recovery.watching import LayerCall, capture, random_state_kept, result_copy, scratch_copy

_NUMBERS_AT_ONCE = 2**22  # of patches in float64: 32 MiB


def reconstruct(
    model: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Tensor | Iterable[Tensor],
    *,
    ridge: float = 1e-4,
    max_positions: int = 20_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[nn.Module, RecoveryReport]:
    """TODO."""
    if not ridge >= 0:
        raise ConfigError(f"ridge is {ridge!r}; it is a number of at least 0, relative to the inputs' mean square.")
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
        self, whole: nn.Module, small: nn.Module, data: Batches, ridge: float, max_positions: int, seed: int
    ) -> None:
        self.whole, self.small, self.data = whole, small, data
        self.tensors = dict(named_tensors(small))
        self.ridge = ridge
        self.share = max_positions / data.count()  # of positions an example
        self.seed = seed

    def __call__(self, one: Consumer) -> RecoveredLayer:
        weight = self.tensors[one.weight]
        try:
            sums, groups = self._measured(one, weight)
        except LookupError:
            return RecoveredLayer(one.name, (), "the layer does not run on all calibration batches")
        start = weight.detach().double().to(sums.x.device).reshape(groups, -1, weight[0].numel())
        fitted, constant = sums.solve(start, ridge=self.ridge, intercept=one.takes_constant)
        target = None if one.constant is None else self.tensors[one.constant]
        old = torch.zeros_like(constant) if target is None or one.is_mean else target.detach().to(constant).view_as(constant)
        before, size = sums.error(start, old)
        after, _ = sums.error(fitted, constant)
        changed = [one.weight]
        with torch.no_grad():
            weight.copy_(fitted.reshape(weight.shape))
            if target is not None:
                target.copy_((target.to(constant) - constant.flatten()) if one.is_mean else constant.flatten())
                changed.append(str(one.constant))
        size = size or 1.0
        return RecoveredLayer(one.name, tuple(changed), one.why_none, before / size, after / size)

    def _measured(self, one: Consumer, weight: Tensor) -> tuple[NormalEquations, int]:
        """Sum up what the pruned layer sees and what the original's kept filters give, at the same positions."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = one.rows.to(self.data.device)
        sums: NormalEquations | None = None
        groups = 1
        for part in self.data.parts():
            wanted = capture(self.whole, part, one.weight)
            seen = capture(self.small, part, one.weight)
            groups = seen.groups
            if sums is None:
                device = "cpu" if weight.device.type == "mps" else weight.device
                sums = NormalEquations(groups, weight[0].numel(), weight.shape[0] // groups, device)
            for index in self._sampled(positions_of(seen), len(part), weight[0].numel() * groups, generator):
                index = index.to(self.data.device)
                x = inputs_at(seen, index, tuple(weight.shape[2:])).to(sums.x.device).double()
                y = outputs_at(wanted, index)[:, rows].to(sums.x.device).double().view(len(index), groups, -1)
                sums.add(x.movedim(1, 0), y.movedim(1, 0))
        assert sums is not None
        return sums, groups

    def _sampled(self, positions: int, examples: int, width: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Draw output positions, each at most once, as many for every example; some at a time."""
        count = min(positions, max(1, round(self.share * examples)))
        index = torch.randperm(positions, generator=generator)[:count] if count < positions else torch.arange(positions)
        yield from index.split(max(1, _NUMBERS_AT_ONCE // width))
