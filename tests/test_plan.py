"""Plans: to JSON and back, refused where hostile, fitted to a graph, joined over rounds, readable."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from prunus.allocation import allocate
from prunus.budget import Budget
from prunus.cost import Cost, predict_cost
from prunus.criteria import score
from prunus.errors import FileFormatError, PlanError
from prunus.graph.trace import trace
from prunus.models import build_model
from prunus.plan import PlannedGroup, PruningPlan, plan_from_keep
from prunus.surgery import remove
from tests.handmade import Row, chain_graph, concat_graph, row_graph
from tests.silenced import random_keep


def example() -> PruningPlan:
    graph = row_graph()
    keep = graph.keep_all()
    keep[[1, 4, 6]] = False
    return plan_from_keep(
        graph,
        keep,
        criterion="l1_norm",
        budget={"macs": 0.5, "size_bytes": 640_000},
        header_bytes=10,
        notes=["one", "two"],
    )


def test_a_plan_says_what_stays_and_what_it_costs() -> None:
    plan, graph = example(), row_graph()
    assert [(g.name, g.size, g.keep) for g in plan.groups] == [("conv1", 6, (0, 2, 3, 5)), ("conv2", 5, (1, 2, 3, 4))]
    assert plan.removed == 3 and plan.format_version == 1
    assert plan.before == predict_cost(graph, graph.keep_all(), header_bytes=10)
    assert plan.after == predict_cost(graph, plan.keep_array(graph), header_bytes=10)
    assert isinstance(plan.after, Cost)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_keep_arrays_go_round(seed: int) -> None:
    graph = concat_graph()
    keep = random_keep(graph, np.random.default_rng(seed))
    plan = plan_from_keep(graph, keep)
    assert (plan.keep_array(graph) == keep).all()
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_json_and_files_go_round(tmp_path: Path) -> None:
    plan, path = example(), tmp_path / "deep" / "plan.json"
    plan.save(path)
    assert PruningPlan.from_json(path) == PruningPlan.from_json(str(path)) == plan
    text = path.read_text()
    assert PruningPlan.from_json(text) == PruningPlan.from_json(json.dumps(json.loads(text))) == plan
    assert '\n  {"name": "conv1", "size": 6, "keep": [0, 2, 3, 5]},\n' in text
    empty = plan_from_keep(chain_graph([], [1]), np.ones(1, dtype=np.bool_))
    assert PruningPlan.from_json(empty.to_json()) == empty


def test_plans_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        example().criterion = "other"


def edited(**changes: Any) -> str:
    data = json.loads(example().to_json())
    for path, value in changes.items():
        target, *keys = [data, *path.split("__")]
        for key in keys[:-1]:
            target = target[int(key) if key.isdecimal() else key]
        if value is ...:
            del target[keys[-1]]
        else:
            target[int(keys[-1]) if keys[-1].isdecimal() else keys[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        ("[]", "valid dictionary|object"),
        ("null", "object"),
        (example().to_json()[:-30], "Invalid JSON"),
        ("[" * 200_000, "Invalid JSON: recursion limit"),
        ('{"groups":' * 100_000, "Invalid JSON: recursion limit"),
        (edited(groups__0__size=2**63), "groups.0.size: Input should be less than"),
        (example().to_json().replace('"size": 6', '"size": ' + "9" * 100_000), "number out of range"),
        (edited(groups__0__size="6"), "groups.0.size: Input should be a valid integer"),
        (edited(groups__0__size=6.0), "groups.0.size: Input should be a valid integer"),
        (edited(groups__0__size=True), "groups.0.size: Input should be a valid integer"),
        (edited(groups__0__size=0), "groups.0.size: Input should be greater"),
        (edited(groups__0__keep=[]), "groups.0.keep: .*at least 1 item"),
        (edited(groups__0__keep=[0, 2, 2, 5]), "kept indices of 'conv1' are not strictly increasing"),
        (edited(groups__0__keep=[0, 3, 2]), "not strictly increasing"),
        (edited(groups__0__keep=[-1, 2]), "groups.0.keep.0: Input should be greater"),
        (edited(groups__0__keep=[0, 6]), "'conv1' keeps index 6, but has only 6 channels"),
        (edited(groups__0__keep=[0, None]), "groups.0.keep.1: Input should be a valid integer"),
        (edited(groups__0__keep="0123"), "groups.0.keep: Input should be a valid array"),
        (edited(groups__1__name="conv1"), "the group 'conv1' is there 2 times"),
        (edited(groups__0__name=""), "groups.0.name: String should have at least 1"),
        (edited(groups__0__name="\x1b[2Jconv1"), "groups.0.name: control characters are not allowed"),
        (edited(groups__0__name=["conv1"]), "groups.0.name: Input should be a valid string"),
        (edited(groups__0__extra=1), "groups.0.extra: Extra inputs are not permitted"),
        (edited(groups=...), "groups: Field required"),
        (edited(groups={}), "groups: Input should be a valid array"),
        (edited(surprise="__import__('os')"), "surprise: Extra inputs are not permitted"),
        (edited(format_version=2), "format_version: Input should be 1"),
        (edited(before__macs=-1), "before.macs: Input should be greater than or equal to 0"),
        (edited(before__macs=float("nan")), "before.macs"),
        (edited(before__macs=2**70), "before.macs: Input should be less than"),
        (edited(before__seconds=1), "before.seconds"),
        (edited(after=...), "after: Field required"),
        (edited(budget={"macs": float("nan")}), "budget.macs"),
        (edited(budget={"macs": float("inf")}), "budget.macs"),
        (edited(budget={"latency": 0.5}), "budget.latency"),
        (edited(budget={"macs": "0.5"}), "budget.macs"),
        (edited(notes="one"), "notes: Input should be a valid array"),
        (edited(notes=[1]), "notes.0: Input should be a valid string"),
    ],
)
def test_hostile_json_is_refused_with_one_message(text: str, message: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(FileFormatError, match=message) as caught:
        PruningPlan.from_json(text)
    assert str(caught.value).startswith("the plan is not a valid pruning plan: ")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"plan\.json is not a valid pruning plan: "):
        PruningPlan.from_json(path)
    assert time.perf_counter() - start < 5


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no plan at .*missing\.json"):
        PruningPlan.from_json(str(tmp_path / "missing.json"))
    with pytest.raises(FileFormatError, match="cannot read the plan"):
        PruningPlan.from_json(tmp_path)
    binary = tmp_path / "plan.json"
    binary.write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(FileFormatError, match=r"plan\.json is not a valid pruning plan: Invalid JSON"):
        PruningPlan.from_json(binary)
    with binary.open("wb") as file:
        file.truncate(70_000_000)
    with pytest.raises(FileFormatError, match=r"has 70\.00 MB; no plan is larger than 64 MB"):
        PruningPlan.from_json(binary)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(max_examples=60, deadline=None)
@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_any_json_is_read_or_refused(value: object) -> None:
    for text in (json.dumps(value), edited(groups__0__keep=value), edited(budget=value)):
        try:
            PruningPlan.from_json(text)
        except FileFormatError as error:
            assert "not a valid pruning plan" in str(error)


def test_a_plan_for_another_network_is_refused() -> None:
    plan = example()
    with pytest.raises(PlanError, match="a group 'conv1', which this network lacks"):
        plan.keep_array(concat_graph())
    with pytest.raises(PlanError, match="the plan's group 'c0' has 3 channels, and 4 in this network"):
        plan_from_keep(chain_graph([3], [1, 1]), np.ones(4, dtype=np.bool_)).keep_array(chain_graph([4], [1, 1]))


def test_groups_that_a_plan_does_not_name_stay_whole() -> None:
    graph, plan = row_graph(), example()
    partial = plan.model_copy(update={"groups": plan.groups[:1]})
    assert partial.keep_array(graph).tolist() == [True, False, True, True, False, True, *[True] * 6]


def test_flags_that_make_no_plan() -> None:
    graph = row_graph()
    with pytest.raises(PlanError, match="keep has 11 flags, but this network's graph needs 12"):
        plan_from_keep(graph, np.ones(11, dtype=np.bool_))
    keep = graph.keep_all()
    keep[6:11] = False
    with pytest.raises(PlanError, match="keep leaves no channel of group 'conv2'"):
        plan_from_keep(graph, keep)


def test_rounds_are_joined() -> None:
    first, graph = example(), row_graph()
    later = PruningPlan(
        criterion="bn_scale",
        budget={"macs": 0.5, "params": 7, "pruning_ratio": 0.25},
        before=first.after,
        after=Cost(1, 2, 3),
        groups=(PlannedGroup(name="conv1", size=4, keep=(1, 3)),),
        notes=("late",),
    )
    joined = first.compose(later)
    assert [(g.name, g.size, g.keep) for g in joined.groups] == [("conv1", 6, (2, 5)), ("conv2", 5, (1, 2, 3, 4))]
    assert joined.before == first.before and joined.after == Cost(1, 2, 3)
    assert joined.criterion == "bn_scale" and joined.notes == ("late",)
    assert joined.budget == {"macs": first.after.macs // 2, "params": 7}
    assert PruningPlan.from_json(joined.to_json()) == joined
    assert int(joined.keep_array(graph).sum()) == 2 + 4 + 1
    with pytest.raises(PlanError, match="'conv1' has 6 channels, and 4 in the network that the plan leaves"):
        first.compose(first)


def test_joined_rounds_are_the_rounds_one_after_the_other() -> None:
    torch.manual_seed(0)
    model, x = build_model("resnet8_pad"), torch.zeros(1, 3, 8, 8)
    graphs = [trace(model, x)]
    first = allocate(graphs[0], score(model, graphs[0], "l1_norm"), Budget(macs=0.7))
    halfway = remove(model, graphs[0], first)
    graphs.append(trace(halfway, x))
    second = allocate(graphs[1], score(halfway, graphs[1], "l1_norm"), Budget(macs=0.6))
    joined = first.compose(second)
    expected = remove(halfway, graphs[1], second).state_dict()
    at_once = remove(model, graphs[0], joined).state_dict()
    assert first.removed and second.removed and joined.removed == first.removed + second.removed
    assert all(torch.equal(tensor, expected[name]) for name, tensor in at_once.items())
    assert joined.after == second.after == predict_cost(graphs[0], joined.keep_array(graphs[0]))


def test_summary_reads_well() -> None:
    lines = example().summary().splitlines()
    assert lines[0].split() == ["parameters", "515", "→", "310", "60.2%"]
    assert [line.split()[0] for line in lines if line] == [
        "parameters", "MACs", "size", "channels", "conv1", "conv2", "note:", "note:"
    ]  # fmt: skip
    assert "conv1" in lines[5] and lines[5].split()[1:] == ["6", "→", "4", "66.7%"]
    assert lines[-1] == "note: two"


def test_rich_prints_a_table() -> None:
    output = io.StringIO()
    odd = example().model_copy(update={"notes": ("a [bold]note[/bold]",)})
    Console(file=output, width=100).print(odd)
    text = output.getvalue()
    assert "Pruning plan by l1_norm" in text and "conv2" in text and "60.2%" in text
    assert "note: a [bold]note[/bold]" in text, "markup in names and notes is shown, not obeyed"


def test_a_real_plan_fits_its_network() -> None:
    model = Row()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    plan = allocate(graph, score(model, graph), Budget(macs=0.5), criterion="fused_conv_bn")
    assert remove(model, graph, PruningPlan.from_json(plan.to_json())).conv1.out_channels == len(plan.groups[0].keep)
