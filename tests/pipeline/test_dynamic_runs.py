"""Runs of method B on the digits: from scratch, its criteria and their forms, removal while it trains, and its end."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import prunus
from prunus import criteria, pipeline
from prunus.cli import app
from prunus.config import RunConfig, load_config
from prunus.cost import count_cost
from prunus.errors import ConfigError
from prunus.files import read_json
from prunus.graph.channels import ChannelGraph
from prunus.methods import choice
from prunus.plan import PruningPlan

SETTINGS: dict[str, Any] = {
    "model": "resnet8",
    "data": "digits",
    "method": "layer-fusion",
    "macs": 0.5,
    "batch_size": 64,
    "threads": 1,
    "device": "cpu",
}


def compress(out: Path, **changes: Any) -> tuple[Path, str]:
    said = io.StringIO()
    config = RunConfig.model_validate({**SETTINGS, "out": out, **changes})
    return pipeline.compress(config, Console(file=said, width=200)), said.getvalue()


def metrics(out: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("run") / "a"
    return compress(out, from_scratch=True, search_epochs=8, finetune_epochs=4, remove_after=1, macs=0.4)


def test_from_scratch_learns_without_a_dense_training(from_scratch: tuple[Path, str]) -> None:
    out, said = from_scratch
    assert "starts from scratch" in said
    assert not (out / "dense.safetensors").exists()
    summary = read_json(out / "summary.json")
    assert summary["epochs"]["dense"] == 0
    assert summary["pruned"]["test_accuracy"] > 0.8  # chance is 0.1
    assert summary["dense"]["test_accuracy"] is None
    assert summary["dense"]["macs"] == 763_520
    assert summary["pruned"]["macs"] <= 0.4 * 763_520
    assert set(summary["files"]) == {"model", "plan"}
    assert "trained from scratch" in (out / "report.html").read_text()
    assert 'id="chart-search"' in (out / "report.html").read_text()


def test_epochs_of_the_search_get_cheaper_and_it_ends_once_the_structure_is_stable(
    from_scratch: tuple[Path, str],
) -> None:
    rows = metrics(from_scratch[0], "search")
    macs = [row["trained_macs"] for row in rows]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] == 763_520
    assert macs[-1] < 0.5 * macs[0]
    assert len(rows) < 8
    assert [row["jaccard_overlap"] >= 0.98 for row in rows[-2:]] == [True, True]
    assert all(row["removed_channels"] + row["kept_channels"] <= row["channels"] for row in rows)


def test_every_epoch_counts_the_channels_of_every_group(from_scratch: tuple[Path, str]) -> None:
    out, _ = from_scratch
    rows = metrics(out, "search")
    first = rows[0]["groups"]
    assert sum(first["channels"]) == rows[0]["channels"]
    widths = {group["name"]: group["channels"] for group in read_json(out / "details.json")["groups"]}
    assert dict(zip(first["name"], first["channels"], strict=True)) == widths
    for row in rows:
        for what in ("kept", "returned", "removed"):
            assert sum(row["groups"][what]) == row[f"{what}_channels"], what
            assert len(row["groups"][what]) == len(first["name"])
    assert ["name" in row["groups"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert 'id="chart-groups"' in (out / "report.html").read_text()


def test_the_plan_of_the_whole_search_is_one_of_the_dense_network(from_scratch: tuple[Path, str]) -> None:
    out, _ = from_scratch
    plan = PruningPlan.from_json(out / "plan.json")
    assert plan.before.macs == 763_520
    torch.manual_seed(0)
    dense = prunus.build_model("resnet8", 10, 1)
    small = prunus.remove(dense, prunus.trace(dense, torch.zeros(1, 1, 8, 8)), plan)
    found = prunus.load(out / "model.safetensors")
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in found.state_dict().items()}
    assert count_cost(found, torch.zeros(1, 1, 8, 8)).macs == plan.after.macs
    assert "of the" in plan.notes[-1] and "came back" in plan.notes[-1]
    proof = read_json(out / "verification.json")
    assert proof["passed"] is True
    assert len(proof["rounds"]) >= 4  # every removal while it trained, what was trained, and the last removal


def test_a_checkpoint_beside_from_scratch_is_compared_with_only(from_scratch: tuple[Path, str], tmp_path: Path) -> None:
    torch.manual_seed(9)
    model = prunus.build_model("resnet8", 10, 1)
    prunus.save(model, tmp_path / "c.safetensors", model_name="resnet8", num_classes=10, in_channels=1)
    out, _ = compress(
        tmp_path / "a",
        from_scratch=True,
        checkpoint=tmp_path / "c.safetensors",
        search_epochs=1,
        finetune_epochs=0,
        macs=0.4,
    )
    other, mine = (metrics(path, "search")[0] for path in (from_scratch[0], out))
    assert mine["kept_channels"] < other["kept_channels"]  # one epoch is the whole ramp
    assert read_json(out / "summary.json")["dense"]["test_accuracy"] < 0.5
    assert torch.equal(prunus.load(out / "dense.safetensors").state_dict()["conv1.weight"], model.conv1.weight)  # type: ignore[arg-type, union-attr]


VARIANTS = [
    ["--criterion", "fused_conv_bn", "--norm", "1", "--constant", "--normalize", "max"],
    ["--criterion", "fused_conv_bn", "--norm", "2", "--normalize", "none"],
    ["--normalize", "gaussian"],
    ["--criterion", "delivered_energy", "--variance", "data-free"],
    ["--criterion", "delivered_energy", "--variance", "calibrated", "--normalize", "mean"],
]
OPTIONS: list[dict[str, object]] = [
    {"norm": 1, "constant": True},
    {"norm": 2, "constant": False},
    {"variance": "calibrated"},
    {"variance": "data-free"},
    {"variance": "calibrated"},
]


@pytest.mark.parametrize(("flags", "options"), [*zip(VARIANTS, OPTIONS, strict=True)])
def test_every_form_of_the_score_is_taken_anew_every_epoch(
    flags: list[str], options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[float, dict[str, Any]]] = []

    def counted(model: torch.nn.Module, graph: ChannelGraph, criterion: Any, normalizations: Any, **given: Any) -> Any:
        scale = model.state_dict()["bn1.weight"].abs().sum().item()
        calls.append((scale, {"criterion": criterion, "normalizations": set(normalizations), **given}))
        return criteria.score_each(model, graph, criterion, normalizations, **given)

    monkeypatch.setattr(choice, "score_each", counted)
    command = ["compress", "--method", "layer-fusion", "--model", "resnet8", "--data", "digits", "--macs", "0.5"]
    command += ["--from-scratch", "--search-epochs", "3", "--finetune-epochs", "0", "--remove-after", "1"]
    command += ["--threads", "1", "--device", "cpu", "--out", str(tmp_path / "a")]
    result = CliRunner().invoke(app, [*command, *flags])
    assert result.exit_code == 0, result.output
    assert len(calls) == 5  # the rehearsal, three epochs, the last choice
    assert len({scale for scale, _ in calls[1:]}) == 4
    given = calls[-1][1]
    assert given["criterion"] == (flags[1] if flags[0] == "--criterion" else "delivered_energy")
    assert {key: given[key] for key in options} == options
    own = "none" if given["criterion"] == "delivered_energy" else "mean"
    assert given["normalizations"] == {flags[flags.index("--normalize") + 1] if "--normalize" in flags else own}
    assert (given["calibration"] is not None) == (options.get("variance") == "calibrated")


def test_options_that_would_do_nothing_are_refused() -> None:
    common = {"model": "resnet8", "data": "digits", "macs": "0.5"}
    for flags, message in (
        ({"from_scratch": True}, "--from-scratch True does nothing here: it is for method layer-fusion"),
        ({"remove_after": "2"}, "--remove-after 2 does nothing here"),
        ({"variance": "data-free"}, "it is for criterion delivered_energy"),
        ({"method": "layer-fusion", "from_scratch": True, "epochs": "5"}, "--epochs 5 does nothing here"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(flags=common | flags)
    assert load_config(flags=common | {"method": "layer-fusion", "remove_after": "0"}).remove_after == 0
