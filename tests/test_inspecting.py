"""What `prunus inspect` says: groups by what they cost, exact savings, constraints, and what stays whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.errors import ModelError
from prunus.inspecting import inspect_model, inspect_network, keep_about
from prunus.inspection import Inspection


def prunus_command(*arguments: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns), "NO_COLOR": "1"})


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.out = nn.Conv2d(12, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(self.depthwise(self.grouped(self.stem(x))).relu())
        return self.head((x * torch.arange(5.0).view(5, 1, 1)).mean((2, 3)))


@pytest.fixture(scope="module")
def grouped() -> Inspection:
    return inspect_model(Grouped(), torch.ones(1, 3, 8, 8))


def test_a_group_names_its_layers_its_constraint_and_what_it_touches(grouped: Inspection) -> None:
    rows = {row.name: row for row in grouped.groups}
    stem, inner = rows["stem"], rows["grouped"]
    assert (stem.producers, stem.consumers, stem.passes) == (("stem",), ("grouped",), ())
    assert (inner.producers, inner.consumers, inner.passes) == (("grouped",), ("out",), ("depthwise",))
    assert stem.constraint == "multiples of 4, even in 4 pieces" and (stem.pieces, stem.step) == (4, 4)
    macs = {"stem": 64 * 12 * 27, "grouped": 64 * 12 * 27, "depthwise": 64 * 12 * 9, "out": 64 * 60, "head": 15}
    assert grouped.cost.macs == sum(macs.values())
    assert stem.macs == macs["stem"] + macs["grouped"]
    assert inner.macs == macs["grouped"] + macs["depthwise"] + macs["out"]
    assert inner.macs_share == pytest.approx(inner.macs / grouped.cost.macs)
    assert stem.params == 12 * 27 + 12 + 12 * 27
    assert [row.macs for row in grouped.groups] == sorted((row.macs for row in grouped.groups), reverse=True)


def test_what_stays_whole_has_its_operation_line_and_reason(grouped: Inspection) -> None:
    (frozen,) = [row for row in grouped.frozen if row.op == "aten.mul"]
    assert frozen.tensor == "out.weight" and frozen.channels == 5
    assert "test_inspecting.py:" in frozen.where and frozen.reason
    assert (grouped.layers, grouped.prunable_layers, grouped.channels) == (5, 4, 24)
    assert grouped.prunable_macs_share == pytest.approx(1 - 15 / grouped.cost.macs)


@pytest.mark.parametrize("build", [lambda: prunus.build_model("resnet8"), Grouped])
def test_savings_are_those_of_the_network_really_pruned(build: Callable[[], nn.Module]) -> None:
    model, x = build(), torch.rand(2, 3, 32, 32)
    graph, found = prunus.trace(model, x), inspect_model(model, x)
    whole = prunus.count_cost(model, x)
    assert found.cost == whole
    for row in found.groups[:3]:
        group = graph.group(row.name)
        kept = keep_about(group, group.size // 2)
        assert group.allows(kept) and kept.sum() == row.half.kept
        plan = prunus.PruningPlan.model_validate(
            {
                "before": whole,
                "after": whole,
                "groups": ({"name": row.name, "size": group.size, "keep": tuple(np.flatnonzero(kept).tolist())},),
            }
        )
        left = prunus.count_cost(prunus.remove(model, graph, plan), x)
        assert row.half.macs == whole.macs - left.macs > 0
        assert row.half.params == whole.params - left.params > 0
        assert row.half.size_bytes == whole.size_bytes - left.size_bytes


def test_the_smallest_keeps_a_channel_a_group() -> None:
    found = inspect_network("resnet8")
    assert found.smallest.params < found.half.params < found.cost.params
    assert all(row.half.kept == row.channels // 2 for row in found.groups)
    weights = prunus.build_model("resnet8").state_dict()
    touched = sum(
        prod(weights[tensor].shape)
        for tensor in found.groups[0].tensors
        if "running" not in tensor and "num_batches" not in tensor
    )
    assert found.groups[0].params == touched


def test_images_of_another_size_cost_more() -> None:
    small, large = inspect_network("resnet8", side=32), inspect_network("resnet8", side=64)
    assert large.input_shapes == ((2, 3, 64, 64),)
    assert large.cost.params == small.cost.params and large.cost.macs > 3.9 * small.cost.macs
    with pytest.raises(ModelError, match=r"takes no images .*--side"):
        inspect_network("tests.test_inspecting:takes_vectors", side=32)


def takes_vectors() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.rand(2, 4),)


def test_the_command_prints_groups_on_stdout_and_nothing_else() -> None:
    result = prunus_command("inspect", "resnet20")
    assert result.exit_code == 0 and result.stderr == ""
    assert re.search(
        r"layer2\.0\.conv2 +32 +sum ×3 +any number +layer2\.0\.conv2 \+3 → layer2\.1\.conv1 \+3 +32\.4%", result.stdout
    )
    assert "448 channels in 12 groups can be pruned: 22 of 22 layers, with 100% of the MACs" in result.stdout
    assert "9 residual branches may go as a whole (--drop-branches): layer1.0.conv1 +8" in result.stdout
    assert "fc.weight, 10 channels: it is an output of the model" in result.stdout
    narrow = prunus_command("inspect", "resnet20", columns=80).stdout
    assert "135.2 kB" in narrow and "→" not in narrow


def test_many_groups_are_cut_unless_all_are_asked_for() -> None:
    short, long = (prunus_command("inspect", "resnet56", *more).stdout for more in ((), ("--verbose",)))
    assert "more groups; --verbose shows all of them" in short and "more groups" not in long
    assert "layer1.8.conv1 " in long and "layer1.8.conv1 " not in short


def test_json_is_the_inspection() -> None:
    result = prunus_command("inspect", "resnet8", "--json")
    assert Inspection.model_validate_json(result.stdout) == inspect_network("resnet8")
    assert json.loads(result.stdout)["groups"][0]["half"]["kept"] == 8


def test_a_wrong_name_is_a_message() -> None:
    result = prunus_command("inspect", "resnet21")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: There is no model named 'resnet21'. Did you mean")
