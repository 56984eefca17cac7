"""The search of widths stays on the budget, finds what it should, and goes on where it was stopped."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus import Budget, WidthSearch, WidthTrial, width_search
from prunus.errors import BudgetError, ConfigError, FileFormatError, PlanError
from prunus.graph.channels import ChannelGraph

BUDGET = Budget(macs=0.5)


class Small(nn.Module):
    """Three convolutions, the last in two groups that are cut by position."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(12, 10, 3, groups=2, bias=False), nn.BatchNorm2d(10), nn.ReLU())
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(x))).mean((2, 3)))


@dataclasses.dataclass(frozen=True)
class Setting:
    model: nn.Module
    graph: ChannelGraph
    scores: dict[str, Tensor]
    calibration: Tensor
    images: Tensor
    labels: Tensor

    def search(self, budget: Budget = BUDGET, **options: Any) -> WidthSearch:
        return prunus.search_widths(
            self.model,
            self.graph,
            options.pop("scores", self.scores),
            budget,
            options.pop("calibration", self.calibration),
            options.pop("images", self.images),
            options.pop("labels", self.labels),
            **options,
        )


@pytest.fixture(scope="module")
def small() -> Setting:
    torch.manual_seed(0)
    model = Small().eval()
    graph = prunus.trace(model, torch.randn(2, 3, 8, 8))
    images = torch.randn(60, 3, 8, 8)
    scores = prunus.score(model, graph, "l1_norm")
    return Setting(model, graph, scores, torch.randn(16, 3, 8, 8), images, torch.randint(4, (60,)))


def kept(plan: prunus.PruningPlan) -> tuple[int, ...]:
    return tuple(len(group.keep) for group in plan.groups)


def test_the_best_trial_is_the_plan_and_no_start_is_better(small: Setting) -> None:
    local = prunus.allocate(small.graph, small.scores, BUDGET, scope="local")
    found = small.search(starts=[local], evaluations=15, criterion="l1_norm")
    ranked = prunus.allocate(small.graph, small.scores, BUDGET)
    assert [trial.widths for trial in found.trials[:2]] == [kept(ranked), kept(local)]
    assert [trial.parent for trial in found.trials[:2]] == [None, None]
    assert kept(found.plan) == found.best.widths
    assert found.best.loss == min(trial.loss for trial in found.trials) < found.trials[0].loss
    assert found.plan.criterion == "l1_norm" and found.plan.budget == {"macs": 0.5}
    assert found.plan.notes == ("widths found by a search over 15 networks",)
    assert len(found.trials) == 15 == len({trial.widths for trial in found.trials}), "no widths are measured twice"


def recalibrated(setting: Setting, plan: prunus.PruningPlan) -> nn.Module:
    return prunus.recalibrate(prunus.remove(setting.model, setting.graph, plan), setting.calibration)


def refitted(setting: Setting, plan: prunus.PruningPlan) -> nn.Module:
    removed = prunus.remove(setting.model, setting.graph, plan)
    how: dict[str, Any] = {"ridge": 1e-3, "max_positions": 5000}
    return prunus.reconstruct(setting.model, removed, setting.graph, plan, setting.calibration, **how)[0]


@pytest.mark.parametrize(("recover", "repaired"), [("recalibrate", recalibrated), ("reconstruct", refitted)])
def test_a_trial_is_the_repaired_network_on_the_held_out_images(
    small: Setting, recover: str, repaired: Callable[[Setting, prunus.PruningPlan], nn.Module]
) -> None:
    before = copy.deepcopy(small.model.state_dict())
    found = small.search(evaluations=12, recover=recover)
    network = repaired(small, found.plan)
    with torch.no_grad():
        logits = network.eval()(small.images)
    assert found.best.loss == pytest.approx(float(nn.functional.cross_entropy(logits, small.labels)), rel=1e-5)
    assert found.best.accuracy == pytest.approx(float((logits.argmax(1) == small.labels).double().mean()))
    assert all(torch.equal(before[name], value) for name, value in small.model.state_dict().items())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.2, 0.9), round_to=st.sampled_from([1, 2]))
def test_every_trial_is_on_the_budget_with_even_pieces(small: Setting, seed: int, share: float, round_to: int) -> None:
    budget = Budget(macs=share, params=share)
    try:
        found = small.search(budget, evaluations=4, seed=seed, round_to=round_to)
    except BudgetError:
        return
    dense = prunus.predict_cost(small.graph, small.graph.keep_all())
    names = [group.name for group in small.graph.groups]
    for trial in found.trials:
        plan = prunus.allocate(
            small.graph, small.scores, budget, widths=dict(zip(names, trial.widths, strict=True)), round_to=round_to
        )
        assert kept(plan) == trial.widths, "one more channel would break the budget, and one less was not needed"
        assert all(getattr(plan.after, key) <= limit for key, limit in budget.limits(dense).items())
        plan.keep_array(small.graph)  # refuses uneven pieces
        assert all(width % round_to == 0 for width in trial.widths)


def test_the_seed_alone_decides(small: Setting) -> None:
    first, again, other = (small.search(evaluations=10, seed=seed).trials for seed in (3, 3, 4))
    assert first == again != other
    assert first[0] == other[0]
    assert small.search(evaluations=4, seed=3).trials == first[:4]


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 5, 7])
def test_a_search_that_was_stopped_goes_on(small: Setting, tmp_path: Path, at: int) -> None:
    file = tmp_path / "state.json"
    whole = small.search(evaluations=8, seed=1)
    measured = []

    def stopping(done: float, best: WidthTrial) -> None:
        measured.append(done)
        if len(measured) == at:
            raise Stop

    with pytest.raises(Stop):
        small.search(evaluations=8, seed=1, state_file=file, progress=stopping)
    written = json.loads(file.read_text())
    assert len(written["trials"]) == at
    assert written["groups"] == [group.name for group in small.graph.groups]
    found = small.search(evaluations=8, seed=1, state_file=file, progress=lambda done, best: measured.append(done))
    assert found.trials == whole.trials and found.plan == whole.plan
    assert measured == [number / 8 for number in range(1, 9)], "nothing is measured again"
    assert small.search(evaluations=5, seed=1, state_file=file).trials == whole.trials[:5], "what a short one gives"


def test_time_ends_the_search_and_is_counted_over_calls(
    small: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(width_search.time, "monotonic", lambda: now[0])

    def pass_time(done: float, best: WidthTrial) -> None:
        parts.append(done)

    def measure(self: Any, plan: prunus.PruningPlan) -> tuple[float, float]:
        now[0] += 10
        return 1.0, 0.5

    monkeypatch.setattr(width_search._Judge, "measure", measure)
    parts: list[float] = []
    file = tmp_path / "state.json"
    found = small.search(seconds=25, state_file=file, progress=pass_time)
    assert len(found.trials) == 3 and found.seconds == 30
    assert parts == pytest.approx([0.4, 0.8, 1.0])
    now[0] = 1000.0
    assert small.search(seconds=25, state_file=file).trials == found.trials, "its time is over"
    assert len(small.search(seconds=45, state_file=file).trials) == 5


def test_starts_are_measured_however_short_the_time(small: Setting) -> None:
    starts = [prunus.allocate(small.graph, small.scores, BUDGET, scope="local")]
    assert len(small.search(seconds=1e-9, starts=starts).trials) == 2
    assert len(small.search(evaluations=1, starts=starts).trials) == 2


def test_equal_starts_are_measured_once(small: Setting) -> None:
    ranked = prunus.allocate(small.graph, small.scores, BUDGET)
    assert len(small.search(evaluations=1, starts=[ranked, ranked]).trials) == 1


def test_a_search_with_nothing_left_to_try_ends(small: Setting) -> None:
    found = small.search(Budget(macs=1.0), evaluations=1000)
    assert len(found.trials) == 1 and found.plan.removed == 0


def test_a_network_whose_loss_is_no_number_comes_last(small: Setting) -> None:
    found = small.search(evaluations=3, images=torch.full_like(small.images, torch.nan))
    assert all(trial.loss > 1e300 for trial in found.trials)
    assert found.best == found.trials[0]


def test_a_state_of_another_search_is_refused(small: Setting, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    small.search(evaluations=2, state_file=file)
    others = ({"labels": small.labels.flip(0)}, {"images": small.images + 1})
    for changes in ({"seed": 1}, {"round_to": 2}, {"recover": "reconstruct"}, *others):
        with pytest.raises(FileFormatError, match=r"is of another network, other images or other settings; delete"):
            small.search(evaluations=3, state_file=file, **changes)
    for text in (file.read_text()[:-20], "{}", file.read_text().replace('"accuracy": ', '"accuracy": 7')):
        file.write_text(text)
        with pytest.raises(FileFormatError, match=r"is cut short or damaged; delete .* to start the search again"):
            small.search(evaluations=3, state_file=file)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ConfigError, "a search needs an end: give seconds=120 or evaluations=100"),
        ({"seconds": 0}, ConfigError, "seconds is 0; it is a positive number"),
        ({"seconds": float("nan")}, ConfigError, "seconds is nan"),
        ({"evaluations": 2.5}, ConfigError, "evaluations is 2.5; it is a whole number, at least 1"),
        ({"evaluations": 3, "labels": torch.zeros(3, dtype=torch.int64)}, ConfigError, r"labels torch.int64 \(3,\)"),
        ({"evaluations": 3, "labels": torch.zeros(60)}, ConfigError, "one int64 class"),
        ({"evaluations": 3, "labels": [0] * 60}, ConfigError, "labels is of type list; pass a tensor"),
        ({"evaluations": 3, "calibration": iter([])}, ConfigError, "gone through only once"),
        ({"evaluations": 3, "scores": {}}, PlanError, "there are no scores for the group"),
        ({"evaluations": 3, "round_to": 0}, ConfigError, "round_to is 0"),
        ({"evaluations": 3, "recover": "train"}, ConfigError, "recover is 'train'; it is one of recalibrate, reconst"),
        ({"evaluations": 3, "budget": Budget(macs=1)}, BudgetError, "is not reachable"),
    ],
)
def test_what_cannot_be_used_is_said(
    small: Setting, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        small.search(**options)


def test_a_start_of_another_network_is_refused(small: Setting) -> None:
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    graph = prunus.trace(other, torch.randn(2, 3, 8, 8))
    start = prunus.allocate(graph, prunus.score(other, graph, "l1_norm"), BUDGET)
    with pytest.raises(PlanError, match="Was it made for another"):
        small.search(evaluations=3, starts=[start])
