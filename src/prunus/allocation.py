"""Allocation: which channels stay, so that the network is within a budget and no smaller than it has to be."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from decimal import Decimal
from typing import NoReturn, get_args

import numpy as np
import torch
from torch import Tensor

from prunus.budget import ROUNDING, Budget
from prunus.cost import (
    METRICS,
    Cost,
    CostTable,
    Counts,
    GrowingCost,
    format_bytes,
    format_count,
    format_latency,
    predict_cost,
)
from prunus.errors import BudgetError, ConfigError, PlanError
from prunus.graph.channels import ChannelGraph, Ids, Keep
from prunus.ladders import Floats, Ladder, Rungs, Scope, ladder_of
from prunus.plan import PruningPlan, plan_from_keep

__all__ = ["Budget", "Scope", "allocate"]


def allocate(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    scope: Scope = "global",
    widths: Mapping[str, float] | None = None,
    min_channels: int | None = None,
    round_to: int = 1,
    header_bytes: int = 0,
    criterion: str = "",
) -> PruningPlan:
    """Choose the channels that stay: the best ones whose network is within the budget.

    Giving any group its next channel back (its next `round_to`) would break the budget. Equal arguments give equal
    plans; among equal scores the group that keeps the smaller share comes first, then the earlier group and channel.

    Args:
        graph: the channel graph.
        scores: one finite number a channel for every group, (group.size,), higher = keep, as `prunus.score` returns.
        budget: what the network may cost; all of its limits hold.
        scope: ``"global"`` ranks the channels of all groups together; ``"local"`` removes the same fraction of every
            group, the smallest that is enough, and scores rank within the groups. A `pruning_ratio` is of all channels
            in the one and of each group's in the other.
        widths: one positive number a group: the proportions in which the groups keep channels, as far as floors and
            rounding let them; scores then rank within the groups alone. The widths of a plan that this function made
            for the same budget, floors and rounding give the same widths again. Not with ``scope="local"``, which keeps
            the proportions of the whole network.
        min_channels: how many channels every group keeps at least; a group that has fewer stays whole. By default a
            tenth of each group, rounded up.
        round_to: keep multiples of this many channels. A group whose size is no multiple may also stay whole, one that
            is smaller always does; a note of the plan says so.
        header_bytes: what a file takes beside its tensors; it counts towards `size_bytes`.
        criterion: the name to record in the plan.

    Raises:
        BudgetError: the budget cannot be reached; the message names the smallest cost that can.
        ConfigError: `scope`, `min_channels` or `round_to` is out of its range, or `widths` has no say in the scope.
        PlanError: the scores or the widths do not fit the graph.
    """
    _check_settings(scope, min_channels, round_to)
    values = _checked_scores(graph, scores)
    targets = None if widths is None else _checked_widths(graph, widths, scope)
    search = _Search(graph, budget, header_bytes, _conditions(min_channels, round_to))
    ladders = [ladder_of(group, values[group.name], min_channels, round_to) for group in graph.groups]
    notes = _rounding_note(ladders, round_to)
    if scope == "local" and budget.pruning_ratio is not None:
        ladders, more = search.capped(ladders, budget.pruning_ratio)
        notes += more
    keep = graph.keep_all()
    for ladder, count in zip(ladders, search.run(ladders, scope, targets), strict=True):
        keep[ladder.ids[count:]] = False
    if keep.all():
        notes += ["the network is within the budget as it is; nothing is removed"]
    return plan_from_keep(
        graph,
        keep,
        criterion=criterion,
        budget=budget.to_dict(),
        header_bytes=header_bytes,
        notes=notes,
        before=search.dense,
    )


class _Search:
    """Finds the widths within a budget, and says why where there are none."""

    def __init__(self, graph: ChannelGraph, budget: Budget, header_bytes: int, conditions: str) -> None:
        self.graph = graph
        self.budget = budget
        self.conditions = conditions
        self.dense = predict_cost(graph, graph.keep_all(), header_bytes=header_bytes)
        if budget.latency_ps is not None and not graph.times:
            raise BudgetError(
                "a budget of latency needs to know what the layers take: measure them first, "
                "graph = graph.with_times(prunus.measure_times(model, graph, example_inputs).times)."
            )
        limits = budget.limits(self.dense)
        self.limits = np.array([limits.get(name, np.iinfo(np.int64).max) for name in METRICS])
        self.table = CostTable(graph, header_bytes=header_bytes) if limits else None  # a ratio alone has no price

    def capped(self, ladders: list[Ladder], pruning_ratio: float) -> tuple[list[Ladder], list[str]]:
        """Cut each ladder off where its group would keep more than the ratio allows; floors stay, and are noted."""
        cut, above = [], []
        for ladder in ladders:
            allowed = ladder.levels <= _kept(pruning_ratio, ladder.group.size)
            if not allowed[0]:
                above.append(f"{ladder.group.name} ({ladder.levels[0]} of {ladder.group.size})")
                allowed[0] = True
            cut.append(dataclasses.replace(ladder, levels=ladder.levels[allowed]))
        if ladders and len(above) == len(ladders):
            most = max(1 - ladder.levels[0] / ladder.group.size for ladder in ladders)
            self._refuse_ratio(f"no group can lose more than {int(most * 100) / 100:.2f} of its channels")
        note = f"floors keep more than pruning_ratio {pruning_ratio:g} asks for in {_listed(above)}"
        return cut, [note] if above else []

    def run(self, ladders: list[Ladder], scope: Scope, targets: Floats | None) -> list[int]:
        """Return how many channels each group keeps."""
        rungs = Rungs(ladders)
        most = total = sum(ladder.group.size for ladder in ladders)
        if scope == "global" and self.budget.pruning_ratio is not None:
            most = _kept(self.budget.pruning_ratio, total)
        if rungs.base_count > most:
            share = int((1 - rungs.base_count / total) * 100) / 100
            self._refuse_ratio(f"at most {share:.2f} of the {total} channels can go")
        order = rungs.order(scope, targets)
        taken = int(np.searchsorted(rungs.base_count + np.cumsum(rungs.sizes[order]), most, side="right"))
        if self.table is None:
            return self._filled_up(rungs, order, taken, most, None)
        floors = rungs.floors(self.graph.keep_all())
        self._check_reachable(Cost(*self.table.costs(self.table.widths(floors)).tolist()), bool(ladders))
        taken, counts = self._affordable(self.table, rungs, order[:taken], floors)
        return self._filled_up(rungs, order, taken, most, GrowingCost(self.table, counts))

    def _affordable(self, table: CostTable, rungs: Rungs, order: Ids, floors: Keep) -> tuple[int, Counts]:
        """Return how many of the first rungs are within the limits, and how many channels of each class stay then."""
        base = table.counts(floors)
        place = np.full(len(rungs.sizes), len(order))  # of each rung in the order
        place[order] = np.arange(len(order))
        added, classes = np.repeat(place, rungs.sizes), table.classes[rungs.channels]
        low, high, best = 0, len(order), base  # the first `low` rungs fit; costs only grow with more
        while low < high:
            middle = (low + high + 1) // 2
            counts = base + np.bincount(classes[added < middle], minlength=len(base))
            if (table.costs(table.widths_of(counts)) <= self.limits).all():
                low, best = middle, counts
            else:
                high = middle - 1
        return low, best

    def _filled_up(self, rungs: Rungs, order: Ids, taken: int, most: int, cost: GrowingCost | None) -> list[int]:
        """Climb on, best rung first, wherever one still fits; since costs only grow, a group that fails is done."""
        climbed = np.bincount(rungs.groups[order[:taken]], minlength=len(rungs.ladders))
        count = rungs.base_count + int(rungs.sizes[order[:taken]].sum())
        rest = order[taken:]
        groups, sizes = rungs.groups[rest].tolist(), rungs.sizes[rest].tolist()
        climbing = set(groups)
        for rung, group, size in zip(rest.tolist(), groups, sizes, strict=True):
            if not climbing:
                break
            if group not in climbing:
                continue
            if count + size <= most and (cost is None or cost.grow(rungs.added(rung), self.limits)):
                count += size
                climbed[group] += 1
            else:
                climbing.remove(group)
        return [int(ladder.levels[level]) for ladder, level in zip(rungs.ladders, climbed, strict=True)]

    def _refuse_ratio(self, because: str) -> NoReturn:
        raise BudgetError(
            f"pruning_ratio {_fraction(self.budget.pruning_ratio or 0.0)} is not reachable: {self.conditions} "
            f"{because}. Ask for less, or lower min_channels."
        )

    def _check_reachable(self, smallest: Cost, prunable: bool) -> None:
        """Raise unless the network with every group at its floor is within the budget."""
        for index, name in enumerate(METRICS):
            dense, least, limit = getattr(self.dense, name), getattr(smallest, name), int(self.limits[index])
            if least <= limit:
                continue
            asked = getattr(self.budget, name)
            write = {"size_bytes": format_bytes, "latency_ps": format_latency}.get(name, format_count)
            what = {"params": " parameters", "macs": " MACs", "size_bytes": "", "latency_ps": " of latency"}[name]
            share = f" ({-(-100 * least // dense) / 100:.2f})"
            wanted = f"{_fraction(asked)} of {write(dense)}" if isinstance(asked, float) else f"{write(limit)}"
            if not prunable:
                because = _frozen_reasons(self.graph)
            else:
                because = f"{self.conditions} the smallest network has {write(least, up=True)}{share}."
            error = BudgetError(f"{wanted}{what} is not reachable: {because}")
            error.least_latency_ps = least if name == METRICS[-1] and prunable else None
            raise error


def _kept(pruning_ratio: float, channels: int) -> int:
    """Return how many of so many channels may stay when at least the given fraction goes."""
    return int((1 - Decimal(repr(pruning_ratio))) * channels + ROUNDING)


def _check_settings(scope: str, min_channels: int | None, round_to: int) -> None:
    if scope not in get_args(Scope):
        raise ConfigError(
            f"scope is {scope!r}; it is 'global' (rank all channels together) or 'local' (each group alike)."
        )
    for name, value in (("min_channels", min_channels), ("round_to", round_to)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} is {value!r}; it is a whole number, at least 1.")


def _checked_scores(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Return the scores as arrays; a PlanError says where they do not fit the graph."""
    _refuse_strangers(graph, scores, "there are scores")
    checked: dict[str, Floats] = {}
    for group in graph.groups:
        if group.name not in scores:
            raise PlanError(f"there are no scores for the group {group.name!r}; prunus.score(model, graph) gives all.")
        values = torch.as_tensor(scores[group.name]).detach().to("cpu", torch.float64).numpy()
        if values.shape != (group.size,):
            raise PlanError(
                f"the scores of {group.name!r} have shape {values.shape}, and it has {group.size} channels."
            )
        if not np.isfinite(values).all():
            raise PlanError(f"the scores of {group.name!r} are not all finite; score every channel with a number.")
        checked[group.name] = values
    return checked


def _checked_widths(graph: ChannelGraph, widths: Mapping[str, float], scope: Scope) -> Floats:
    """Return the proportions group by group; a PlanError says where they do not fit the graph."""
    if scope == "local":
        raise ConfigError("widths and scope='local' are given: both say how much each group keeps; give one.")
    _refuse_strangers(graph, widths, "there is a width")
    checked = np.zeros(len(graph.groups))
    for index, group in enumerate(graph.groups):
        width = widths.get(group.name)
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
            said = "is missing" if width is None else f"is {width!r}"
            raise PlanError(f"the width of the group {group.name!r} {said}; give every group a positive number.")
        checked[index] = width
    return checked


def _refuse_strangers(graph: ChannelGraph, given: Mapping[str, object], what: str) -> None:
    names = {group.name for group in graph.groups}
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise PlanError(f"{what} for a group {name!r}, which this network lacks{hint}.")


def _conditions(min_channels: int | None, round_to: int) -> str:
    floor = f"min_channels={min_channels}"
    if min_channels is None:
        floor = "a tenth of every group kept, the default of min_channels,"
    return f"with {floor}" + (f" and round_to={round_to}" if round_to > 1 else "")


def _fraction(value: float) -> str:
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _rounding_note(ladders: list[Ladder], round_to: int) -> list[str]:
    groups = [ladder.group for ladder in ladders if not ladder.group.dropped]
    small = [f"{group.name} ({group.size})" for group in groups if group.size < round_to]
    return [f"round_to={round_to} is more than these groups have, which stay whole: {_listed(small)}"] if small else []


def _frozen_reasons(graph: ChannelGraph) -> str:
    reasons = [f"{freeze.tensor}: {freeze.reason}" for freeze in graph.frozen]
    return f"this network has no channels that can go ({_listed(reasons) or 'none were found'})."


def _listed(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
