"""The plan is within the budget, one more rung of any group would break it, and the best channels stay."""

from __future__ import annotations

import dataclasses
import re
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunus.allocation import allocate
from prunus.budget import Budget
from prunus.cost import predict_cost
from prunus.errors import BudgetError, ConfigError, PlanError
from prunus.graph.channels import ChannelGraph, ChannelGroup, LayerTime
from prunus.graph.trace import trace
from prunus.models import build_model
from prunus.plan import PruningPlan
from tests.handmade import chain_graph, concat_graph, row_graph, sum_graph

METRICS = ("params", "macs", "size_bytes")


@dataclass(frozen=True)
class Case:
    """One question to `allocate`."""

    graph: ChannelGraph
    scores: dict[str, torch.Tensor]
    budget: Budget
    scope: str
    min_channels: int | None
    round_to: int

    def plan(self) -> PruningPlan:
        return allocate(
            self.graph,
            self.scores,
            self.budget,
            scope=self.scope,
            min_channels=self.min_channels,
            round_to=self.round_to,
        )

    def levels(self, size: int) -> list[int]:
        """The counts that a group of this size may keep, by the words of the documentation."""
        floor = -(-size // 10) if self.min_channels is None else min(self.min_channels, size)
        return [n for n in range(floor, size + 1) if n % self.round_to == 0 or n == size]

    def fits(self, counts: list[int]) -> bool:
        """Whether the network with so many of each group's best channels is within the budget."""
        cost = predict_cost(self.graph, self.keep(counts))
        dense = predict_cost(self.graph, self.graph.keep_all())
        if any(getattr(cost, name) > limit for name, limit in self.budget.limits(dense).items()):
            return False
        ratio, sizes = self.budget.pruning_ratio, [group.size for group in self.graph.groups]
        if ratio is None:
            return True
        if self.scope == "global":
            return sum(sizes) - sum(counts) >= ratio * sum(sizes) - 1e-6
        floors = [self.levels(size)[0] for size in sizes]
        return all(n <= max(f, (1 - ratio) * s + 1e-6) for n, s, f in zip(counts, sizes, floors, strict=True))

    def keep(self, counts: list[int]) -> np.ndarray:
        keep = self.graph.keep_all()
        for group, count in zip(self.graph.groups, counts, strict=True):
            ranking = sorted(range(group.size), key=lambda i, name=group.name: (-float(self.scores[name][i]), i))
            keep[group.channels[ranking[count:]]] = False
        return keep


def times_of(graph: ChannelGraph) -> st.SearchStrategy[dict[str, LayerTime]]:
    """Times of some weights, of any form; a layer may also take none."""
    weights = [name for name, tensor in graph.tensors.items() if tensor.is_parameter]
    number = st.integers(0, 9)
    time = st.builds(LayerTime, number, number, number, number)
    return st.dictionaries(st.sampled_from(weights), time, min_size=1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["chain", "chain", "row", "sum", "concat"]))
    if kind == "chain":
        widths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=5))
        positions = draw(st.lists(st.integers(0, 50), min_size=len(widths) + 1, max_size=len(widths) + 1))
        graph = chain_graph(widths, positions)
    else:
        graph = {"row": row_graph, "sum": sum_graph, "concat": concat_graph}[kind]()
    if timed := draw(st.booleans()):
        graph = graph.with_times(draw(times_of(graph)))
    number = st.one_of(st.integers(0, 3).map(float), st.floats(-1, 1))  # whole numbers make ties
    scores = {
        group.name: torch.tensor(draw(st.lists(number, min_size=group.size, max_size=group.size)), dtype=torch.float64)
        for group in graph.groups
    }
    share = st.one_of(st.none(), st.floats(0.05, 1))
    limits = {name: draw(share) for name in METRICS if name != "latency_ps" or timed}
    ratio = draw(st.one_of(st.none(), st.floats(0, 0.9)))
    assume(ratio is not None or any(limits.values()))
    budget = Budget(pruning_ratio=ratio, **limits)
    scope = draw(st.sampled_from(["global", "local"]))
    return Case(
        graph, scores, budget, scope, draw(st.sampled_from([None, 1, 2, 5])), draw(st.sampled_from([1, 1, 2, 4]))
    )


def plan_or_none(case: Case) -> PruningPlan | None:
    try:
        return case.plan()
    except BudgetError:
        floors = [case.levels(group.size)[0] for group in case.graph.groups]
        ratio = case.budget.pruning_ratio or 0.0
        too_high = [f > (1 - ratio) * g.size for f, g in zip(floors, case.graph.groups, strict=True)]
        assert not case.fits(floors) or (case.scope == "local" and all(too_high))
        return None


@settings(max_examples=400, deadline=None)
@given(cases())
def test_within_the_budget_and_one_more_would_break_it(case: Case) -> None:
    plan = plan_or_none(case)
    if plan is None:
        return
    counts = [len(group.keep) for group in plan.groups]
    assert (plan.keep_array(case.graph) == case.keep(counts)).all(), "the best channels stay, the earlier one of equals"
    assert case.fits(counts)
    for index, group in enumerate(case.graph.groups):
        levels = case.levels(group.size)
        assert counts[index] in levels
        for more in [n for n in levels if n > counts[index]]:
            assert not case.fits([*counts[:index], more, *counts[index + 1 :]]), (group.name, more)
    assert predict_cost(case.graph, plan.keep_array(case.graph)) == plan.after
    assert case.plan() == plan


@settings(max_examples=150, deadline=None)
@given(cases())
def test_channels_that_stay_follow_one_threshold(case: Case) -> None:
    """Global scope: no threshold on the scores that fits keeps a channel that the plan drops."""
    case = dataclasses.replace(case, scope="global", round_to=1)
    plan = plan_or_none(case)
    if plan is None:
        return
    counts = [len(group.keep) for group in plan.groups]
    for threshold in {float(value) for scores in case.scores.values() for value in scores}:
        above = [
            max(case.levels(group.size)[0], int((case.scores[group.name] >= threshold).sum()))
            for group in case.graph.groups
        ]
        if case.fits(above):
            assert all(kept >= n for kept, n in zip(counts, above, strict=True))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_local_scope_takes_one_ratio_from_all(case: Case) -> None:
    """Local scope: no common share that fits keeps more of any group than the plan does, and the rest is filled up."""
    case = dataclasses.replace(case, scope="local")
    plan = plan_or_none(case)
    if plan is None:
        return
    counts = [len(group.keep) for group in plan.groups]
    sizes = [group.size for group in case.graph.groups]
    for share in {n / size for size in sizes for n in case.levels(size)}:
        common = [max([n for n in case.levels(size) if n / size <= share] or case.levels(size)[:1]) for size in sizes]
        if case.fits(common):
            assert all(kept >= n for kept, n in zip(counts, common, strict=True))


@st.composite
def cases_in_pieces(draw: st.DrawFn) -> Case:
    """Chains some of whose groups lie in pieces that keep counts in proportion."""
    case = dataclasses.replace(draw(cases()), round_to=1, scope="global")
    groups = []
    for group in case.graph.groups:
        shares = draw(st.sampled_from([(1,), (1, 1), (1, 2), (1, 1, 1)]))
        steps = group.size // sum(shares)
        if len(shares) > 1 and steps * sum(shares) == group.size:
            pieces = np.array(draw(st.permutations(np.repeat(np.arange(len(shares)), np.array(shares) * steps))))
            group = dataclasses.replace(group, pieces=pieces, levels=np.arange(1, steps + 1)[:, None] * shares)
        groups.append(group)
    return dataclasses.replace(case, graph=dataclasses.replace(case.graph, groups=tuple(groups)))


@settings(max_examples=300, deadline=None)
@given(cases_in_pieces())
def test_pieces_keep_their_own_best_channels(case: Case) -> None:
    """Within the budget, at a level of every group, with the best of each piece; one more level would break it."""
    try:
        keep = case.plan().keep_array(case.graph)
    except BudgetError:
        return
    dense = predict_cost(case.graph, case.graph.keep_all())

    def fits(keep: np.ndarray) -> bool:
        cost, total = predict_cost(case.graph, keep), case.graph.channel_count
        within = all(getattr(cost, name) <= limit for name, limit in case.budget.limits(dense).items())
        return within and total - keep[:-1].sum() >= (case.budget.pruning_ratio or 0) * total - 1e-6

    def best(group: ChannelGroup, level: np.ndarray) -> np.ndarray:
        chosen = keep.copy()
        chosen[group.channels] = False
        for piece, count in enumerate(level):
            inside = [i for i in range(group.size) if group.piece_of[i] == piece]
            ranking = sorted(inside, key=lambda i: (-float(case.scores[group.name][i]), i))
            chosen[group.channels[ranking[:count]]] = True
        return chosen

    assert fits(keep)
    for group in case.graph.groups:
        kept = keep[group.channels]
        assert group.allows(kept)
        counts = np.bincount(group.piece_of[kept], minlength=group.counts.shape[1])
        assert (best(group, counts) == keep).all()
        above = group.counts[group.counts.sum(axis=1) > counts.sum()]
        assert all(not fits(best(group, level)) for level in above)


@settings(max_examples=200, deadline=None)
@given(cases(), st.data())
def test_widths_in_proportions_are_within_the_budget_and_one_more_would_break_it(
    case: Case, data: st.DataObject
) -> None:
    case = dataclasses.replace(case, scope="global")
    groups = case.graph.groups
    widths = {group.name: data.draw(st.floats(0.01, 100)) for group in groups}
    settings = {"min_channels": case.min_channels, "round_to": case.round_to}
    try:
        plan = allocate(case.graph, case.scores, case.budget, widths=widths, **settings)
    except BudgetError:
        return
    counts = [len(group.keep) for group in plan.groups]
    assert (plan.keep_array(case.graph) == case.keep(counts)).all(), "the best channels of each group stay"
    assert case.fits(counts)
    levels = [case.levels(group.size) for group in groups]
    for index, group in enumerate(groups):
        for more in [n for n in levels[index] if n > counts[index]]:
            assert not case.fits([*counts[:index], more, *counts[index + 1 :]]), (group.name, more)
    for share in {n / widths[g.name] for g, of in zip(groups, levels, strict=True) for n in of}:
        common = [
            max([n for n in of if n / widths[group.name] <= share] or of[:1])
            for group, of in zip(groups, levels, strict=True)
        ]
        if case.fits(common):
            assert all(kept >= n for kept, n in zip(counts, common, strict=True)), "as far as proportions go"


@settings(max_examples=200, deadline=None)
@given(st.one_of(cases(), cases_in_pieces()))
def test_the_widths_of_a_plan_give_the_plan_again(case: Case) -> None:
    case = dataclasses.replace(case, scope="global")
    try:
        plan = case.plan()
    except BudgetError:
        return
    widths = {group.name: len(group.keep) for group in plan.groups}
    settings = {"min_channels": case.min_channels, "round_to": case.round_to}
    assert allocate(case.graph, case.scores, case.budget, widths=widths, **settings) == plan


def test_widths_by_hand() -> None:
    """Seven of eleven in the proportion 2 to 5: 2 and 5 are all of the second group, and there is no more to fill."""
    graph, budget = row_graph(), Budget(pruning_ratio=4 / 11)
    plan = allocate(graph, scores_by_index(graph), budget, widths={"conv1": 2, "conv2": 5})
    assert [group.keep for group in plan.groups] == [(4, 5), (0, 1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("widths", "scope", "said"),
    [
        ({"conv1": 2, "conv2": 5}, "local", "widths and scope='local' are given"),
        ({"conv1": 2}, "global", "the width of the group 'conv2' is missing; give every group a positive number"),
        ({"conv1": 2, "conv2": 0}, "global", "the width of the group 'conv2' is 0; give"),
        ({"conv1": 2, "conv2": float("nan")}, "global", "'conv2' is nan"),
        ({"conv1": 2, "conv2": 1, "conv3": 1}, "global", "a width for a group 'conv3', which this network lacks; the"),
    ],
)
def test_widths_that_cannot_be_used(widths: dict[str, float], scope: str, said: str) -> None:
    graph = row_graph()
    with pytest.raises((ConfigError, PlanError), match=said):
        allocate(graph, scores_by_index(graph), Budget(macs=0.5), scope=scope, widths=widths)


def scores_by_index(graph: ChannelGraph) -> dict[str, torch.Tensor]:
    return {group.name: torch.arange(group.size, dtype=torch.float64) for group in graph.groups}


def test_an_example_by_hand() -> None:
    """Scores 0 to 5 and 0 to 4: seven of eleven stay if those below 2 go; half of 6 and of 5, rounded down, locally."""
    graph = row_graph()
    plan = allocate(graph, scores_by_index(graph), Budget(pruning_ratio=4 / 11), criterion="index")
    assert [(g.name, g.keep) for g in plan.groups] == [("conv1", (2, 3, 4, 5)), ("conv2", (2, 3, 4))]
    assert plan.criterion == "index" and plan.budget == {"pruning_ratio": 4 / 11}
    local = allocate(graph, scores_by_index(graph), Budget(pruning_ratio=0.5), scope="local")
    assert [g.keep for g in local.groups] == [(3, 4, 5), (3, 4)]


def test_equal_scores_shrink_groups_alike() -> None:
    graph = chain_graph([8, 8, 4], [1, 1, 1, 1])
    scores = {group.name: torch.ones(group.size) for group in graph.groups}
    plan = allocate(graph, scores, Budget(pruning_ratio=0.5))
    assert [group.keep for group in plan.groups] == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 1)]


def test_floors() -> None:
    graph = chain_graph([30, 6], [1, 1, 1])
    scores = {"c0": torch.zeros(30), "c1": torch.ones(6)}
    assert [len(g.keep) for g in allocate(graph, scores, Budget(pruning_ratio=0.75)).groups] == [3, 6]
    assert [len(g.keep) for g in allocate(graph, scores, Budget(pruning_ratio=0.6), min_channels=8).groups] == [8, 6]


def test_round_to() -> None:
    graph = chain_graph([32, 20, 6], [1, 1, 1, 1])
    scores = scores_by_index(graph)
    plan = allocate(graph, scores, Budget(params=0.5), round_to=8)
    counts = [len(g.keep) for g in plan.groups]
    assert all(n % 8 == 0 or n == g.size for n, g in zip(counts, plan.groups, strict=True))
    assert plan.removed > 0 and counts[2] == 6
    assert plan.notes == ("round_to=8 is more than these groups have, which stay whole: c2 (6)",)


def test_round_to_beyond_every_group_is_an_error_not_a_silent_nothing() -> None:
    graph = chain_graph([16, 16], [1, 1, 1])
    with pytest.raises(
        BudgetError, match=r"with min_channels=4 and round_to=64 the smallest network has 336 \(1\.00\)"
    ):
        allocate(graph, scores_by_index(graph), Budget(params=0.5), min_channels=4, round_to=64)


def test_a_budget_beyond_the_dense_network_keeps_all_and_says_so() -> None:
    graph = row_graph()
    for budget in (Budget(macs=1.0), Budget(params=10**9, macs=10**9, size="1GB"), Budget(pruning_ratio=0)):
        for scope in ("global", "local"):
            plan = allocate(graph, scores_by_index(graph), budget, scope=scope)
            assert plan.removed == 0 and plan.after == plan.before
            assert plan.notes == ("the network is within the budget as it is; nothing is removed",)


def test_the_header_counts_towards_the_size() -> None:
    graph = row_graph()
    without = allocate(graph, scores_by_index(graph), Budget(size=1500))
    within = allocate(graph, scores_by_index(graph), Budget(size=1500), header_bytes=600)
    assert without.after.size_bytes <= 1500 and within.after.size_bytes <= 1500
    assert within.removed > without.removed
    assert within.after.size_bytes - 600 == predict_cost(graph, within.keep_array(graph)).size_bytes


def unreachable(graph: ChannelGraph, budget: Budget, **settings: object) -> str:
    with pytest.raises(BudgetError) as caught:
        allocate(graph, scores_by_index(graph), budget, **settings)
    return str(caught.value)


def test_unreachable_budgets_name_the_smallest() -> None:
    """chain 2·20 + 20·20 + 20·3 = 500 weights, 100 positions each; two of twenty kept: 2·2 + 2·2 + 2·3 = 14."""
    graph = chain_graph([20, 20], [100, 100, 100])
    assert unreachable(graph, Budget(macs=0.02)) == (
        "0.02 of 50.0 k MACs is not reachable: with a tenth of every group kept, the default of min_channels, "
        "the smallest network has 1.4 k (0.03)."
    )
    assert unreachable(graph, Budget(macs="5k"), min_channels=8) == (
        "5.0 k MACs is not reachable: with min_channels=8 the smallest network has 10.4 k (0.21)."
    )
    assert unreachable(graph, Budget(params=0.001), min_channels=1) == (
        "0.001 of 500 parameters is not reachable: with min_channels=1 the smallest network has 6 (0.02)."
    )
    assert unreachable(graph, Budget(size="1kB"), min_channels=10, header_bytes=700) == (
        "1.0 kB is not reachable: with min_channels=10 the smallest network has 1.3 kB (0.49)."
    )
    assert unreachable(graph, Budget(pruning_ratio=0.9), min_channels=3) == (
        "pruning_ratio 0.90 is not reachable: with min_channels=3 at most 0.85 of the 40 channels can go. "
        "Ask for less, or lower min_channels."
    )
    assert unreachable(graph, Budget(pruning_ratio=0.9), min_channels=3, scope="local") == (
        "pruning_ratio 0.90 is not reachable: with min_channels=3 no group can lose more than 0.85 of its channels. "
        "Ask for less, or lower min_channels."
    )


@pytest.mark.parametrize("width", range(200, 300, 13))
@pytest.mark.parametrize("name", ["params", "macs", "size_bytes"])
def test_the_named_smallest_value_is_reachable(name: str, width: int) -> None:
    """However the numbers in the message are rounded: as typed, they are enough."""
    graph = chain_graph([width, 40, 31], [7, 100, 9, 100])
    found = re.search(r"has ([\d.]+) ?(kB|k|B|) \(([\d.]+)\)", unreachable(graph, Budget(**{name: 0.001})))
    assert found is not None
    for budget in (Budget(**{name: f"{found[1]}{found[2]}"}), Budget(**{name: float(found[3])})):
        assert all(len(g.keep) >= 2 for g in allocate(graph, scores_by_index(graph), budget).groups)


def test_floors_above_a_local_ratio_are_noted() -> None:
    graph = chain_graph([30, 2], [1, 1, 1])
    plan = allocate(graph, scores_by_index(graph), Budget(pruning_ratio=0.75), scope="local")
    assert [len(g.keep) for g in plan.groups] == [7, 1]
    assert plan.notes == ("floors keep more than pruning_ratio 0.75 asks for in c1 (1 of 2)",)


def test_a_network_without_prunable_channels() -> None:
    graph = chain_graph([], [5])
    assert allocate(graph, {}, Budget(macs=1.0)).groups == ()
    assert allocate(graph, {}, Budget(pruning_ratio=0.0)).removed == 0
    assert unreachable(graph, Budget(macs=0.5)).endswith("this network has no channels that can go (none were found).")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scope": "lokal"}, ConfigError, "scope is 'lokal'"),
        ({"min_channels": 0}, ConfigError, "min_channels is 0"),
        ({"round_to": 0}, ConfigError, "round_to is 0"),
        ({"round_to": 2.0}, ConfigError, "round_to is 2.0"),
        ({"scores": {"conv1": torch.ones(6)}}, PlanError, "no scores for the group 'conv2'"),
        ({"scores": {"conv1": torch.ones(5), "conv2": torch.ones(5)}}, PlanError, r"shape \(5,\), and it has 6"),
        (
            {"scores": {"conv1": torch.ones(6), "conv2": torch.tensor([1, 2, 3, 4, np.nan])}},
            PlanError,
            "not all finite",
        ),
        ({"scores": {"con1": torch.ones(6)}}, PlanError, "'con1', which this network lacks; the nearest is 'conv1'"),
    ],
)
def test_wrong_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    graph = row_graph()
    arguments = {"scores": scores_by_index(graph), "budget": Budget(macs=0.5)} | change
    with pytest.raises(error, match=message):
        allocate(graph, **arguments)


@pytest.mark.parametrize("name", ["resnet110", "densenet40"])
def test_deep_networks_take_less_than_a_second(name: str) -> None:
    graph = trace(build_model(name), torch.zeros(1, 3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in graph.groups}
    for scope in ("global", "local"):
        start = time.perf_counter()
        plan = allocate(graph, scores, Budget(macs=0.5, size=0.5), scope=scope)
        assert time.perf_counter() - start < 1
        assert 0.49 < max(plan.after.macs / plan.before.macs, plan.after.size_bytes / plan.before.size_bytes) <= 0.5


BUDGETS = [Budget(pruning_ratio=0.5), Budget(macs=0.3, params=0.4), Budget(pruning_ratio=0.5, size=0.3)]


def seconds_of_allocation(convolutions: int, budget: Budget) -> float:
    graph = chain_graph([64] * convolutions, [100] * (convolutions + 1))
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in graph.groups}
    taken = []
    for _ in range(2):
        start = time.process_time()
        plan = allocate(graph, scores, budget)
        PruningPlan.from_json(plan.to_json()).summary()
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_ten_times_the_convolutions_take_about_ten_times_as_long(budget: Budget) -> None:
    """3,000 convolutions; what grew with the square would take a hundred times as long, and gigabytes."""
    small, large = seconds_of_allocation(300, budget), seconds_of_allocation(3000, budget)
    assert large < 20 * small, (small, large)
