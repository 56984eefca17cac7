"""Runs that leave residual branches out: chosen once, silent to the end, whatever method chooses channels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import prunus
from prunus import pipeline
from prunus.config import RunConfig
from prunus.errors import ConfigError, FileFormatError
from prunus.files import read_json
from prunus.plan import PruningPlan

SETTINGS: dict[str, Any] = {
    "model": "resnet8",
    "data": "digits",
    "macs": 0.5,
    "drop_branches": 1,
    "min_channels": 4,
    "epochs": 3,
    "finetune_epochs": 2,
    "threads": 1,
    "device": "cpu",
}


def compress(out: Path, **changes: Any) -> tuple[Path, str]:
    said = io.StringIO()
    config = RunConfig.model_validate({**SETTINGS, "out": out, **changes})
    return pipeline.compress(config, Console(file=said, width=200)), said.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compress(tmp_path_factory.mktemp("dense") / "a")[0] / "dense.safetensors"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "iterative", "rounds": 2},
        {"method": "layer-fusion", "search_epochs": 3, "remove_after": 1},
        {"allocation": "search", "search_minutes": 0.02},
        {"reinitialize": True},
        {"optimizer": "muon", "ema": 0.9, "distill": 0.5},
    ],
    ids=["one shot", "rounds", "while training", "widths", "new weights", "muon"],
)
def test_what_was_left_out_stays_silent(trained: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run, said = compress(tmp_path / "run", checkpoint=trained, **changes)
    (branch,) = read_json(run / "branches.json", "branches")["branches"]
    assert branch["divergence"] > 0
    assert f"branches   {branch['name']} goes, and with it" in said
    plan = PruningPlan.from_json(run / "plan.json")
    widths = {group.name: len(group.keep) for group in plan.groups}
    assert widths.pop(branch["name"]) == 1
    assert min(widths.values()) >= 4
    assert f"residual branches that were left out, in their order: {branch['name']}" in plan.notes
    assert plan.before.macs > plan.after.macs >= 0.4 * plan.before.macs
    assert read_json(run / "verification.json", "verification")["passed"]
    assert read_json(run / "summary.json", "summary")["dropped_branches"] == [branch["name"]]
    small = prunus.load(run / "model.safetensors")
    assert len(branch["parameters"]) == 6
    for name in branch["parameters"]:
        assert not small.get_parameter(name).any(), name
    dense = prunus.load(trained)
    assert all(dense.get_parameter(name).any() for name in branch["parameters"])


def test_a_choice_that_was_made_holds(trained: Path, tmp_path: Path) -> None:
    run, _ = compress(tmp_path / "run", checkpoint=trained)
    chosen = (run / "branches.json").read_text()
    for file in ("summary.json", "model.safetensors", "plan.json"):
        (run / file).unlink()
    again, said = compress(tmp_path / "run", checkpoint=trained)
    assert "branches   choosing" not in said
    assert (again / "branches.json").read_text() == chosen
    (run / "summary.json").unlink()
    (run / "model.safetensors").unlink()
    (run / "branches.json").write_text('{"branches": [3]}')
    with pytest.raises(FileFormatError, match=r"branches\.json lacks something; delete it to choose again"):
        compress(tmp_path / "run", checkpoint=trained)


def test_too_many_are_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4 residual branches are to go, and the network has 3 residual branches"):
        compress(tmp_path / "run", drop_branches=4)
    assert not (tmp_path / "run" / "dense.safetensors").exists()
    with pytest.raises(ConfigError, match="has none that can go"):
        compress(tmp_path / "other", model="densenet40")


def test_their_choice_looks_at_images() -> None:
    settings = {**SETTINGS, "method": "channel-sparsity", "recover": "none", "calibration_images": 64}
    assert RunConfig.model_validate(settings).calibration_images == 64
    with pytest.raises(ValueError, match="--calibration-images 64 does nothing here"):
        RunConfig.model_validate({**settings, "drop_branches": 0})


def test_from_scratch_there_is_nothing_to_judge_them_by() -> None:
    with pytest.raises(ValueError, match="--drop-branches does not go with --from-scratch"):
        RunConfig.model_validate({**SETTINGS, "method": "layer-fusion", "from_scratch": True})
