"""`prunus compress --int8`: rounded, measured in the runtime, and trained with rounding where that helps."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import prunus.config
import prunus.report
import prunus.training
from prunus import pipeline
from prunus.cli import app
from prunus.config import RunConfig
from prunus.deploy import formats, open_exported
from prunus.errors import ConfigError, ModelError
from prunus.files import read_json
from prunus.pipeline import int8
from prunus.pipeline.run_folder import RunFolder

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SETTINGS: dict[str, Any] = {
    "model": "resnet8",
    "data": "digits",
    "pruning_ratio": 0.2,
    "epochs": 12,
    "validation": 0.3,
    "batch_size": 64,
    "finetune_epochs": 1,
    "int8": True,
    "int8_epochs": 3,
    "calibration_images": 256,
    "threads": 1,
    "device": "cpu",
}
FILES = ("model.int8.onnx", "model.int8.safetensors", "int8.json")


def compress(out: Path, **changes: Any) -> str:
    said = io.StringIO()
    config = RunConfig.model_validate({**SETTINGS, "out": out, **changes})
    pipeline.compress(config, Console(file=said, width=200))
    return said.getvalue()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network, in which the channels between two layers have very different ranges.

    What one layer multiplies by, the next divides by: in float32 nothing changes, but 256 levels are not enough.
    """
    folder = tmp_path_factory.mktemp("dense")
    config = RunConfig.model_validate({**SETTINGS, "int8": False, "int8_epochs": 5, "out": folder})
    pipeline.compress(config, Console(quiet=True), dense_only=True)
    network = prunus.load(folder / "dense.safetensors")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in network.modules():
            norm, after = getattr(block, "bn1", None), getattr(block, "conv2", None)
            if isinstance(norm, nn.BatchNorm2d) and isinstance(after, nn.Conv2d):
                factors = torch.exp(3.4 * (2 * torch.rand(norm.num_features, generator=generator) - 1))
                norm.weight.mul_(factors)
                norm.bias.mul_(factors)
                after.weight.div_(factors.view(1, -1, 1, 1))
    prunus.save(network, folder / "uneven.safetensors", model_name="resnet8", num_classes=10, in_channels=1)
    return folder / "uneven.safetensors"


@pytest.fixture(scope="module")
def uneven(dense: Path) -> Mapping[str, Any]:
    """Settings under which rounding costs much."""
    return {"checkpoint": dense, "pruning_ratio": 0.02, "finetune_epochs": 0}


@pytest.fixture(scope="module")
def trained(uneven: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in which the network was trained with 8-bit integers simulated, and what it said."""
    folder = tmp_path_factory.mktemp("trained") / "a"
    return folder, compress(folder, **uneven)


def test_training_with_simulated_rounding_gives_back_what_rounding_costs(trained: tuple[Path, str]) -> None:
    folder, said = trained
    record, summary = read_json(folder / "int8.json", "record"), read_json(folder / "summary.json", "summary")
    found = record["val_accuracy"]
    assert found["float32"] - found["rounded"] > 0.02
    assert found["fine_tuned"] > found["rounded"] + 0.5 * (found["float32"] - found["rounded"])
    assert record["delivered"] == "fine_tuned"
    assert summary["int8"] == record | {"test_accuracy": summary["int8"]["test_accuracy"], "latency_ms": None}
    assert summary["int8"]["test_accuracy"] > found["rounded"]
    assert summary["files"]["int8"] == "model.int8.onnx" and summary["epochs"]["int8"] == 3
    assert record["size_bytes"] == (folder / "model.int8.onnx").stat().st_size
    assert "points less: training with 8 bits for 3 epochs" in said
    info = open_exported(folder / "model.int8.onnx").info
    assert (info.precision, info.model, info.batch) == ("int8", "resnet8", None) and info.plan
    assert not (folder / "checkpoints").exists()


def test_the_float32_network_stays_as_it_was(trained: tuple[Path, str]) -> None:
    before, after = (prunus.load(trained[0] / name) for name in ("model.safetensors", "model.int8.safetensors"))
    pairs = list(zip(before.state_dict().items(), after.state_dict().values(), strict=True))
    moved = {name for (name, old), new in pairs if not torch.equal(old, new)}
    assert moved == {name for name, _ in before.named_parameters()}  # BatchNorm's statistics do not
    summary = read_json(trained[0] / "summary.json", "summary")
    assert summary["pruned"]["test_accuracy"] > 0.9


def test_the_report_and_the_terminal_say_it_in_a_line(trained: tuple[Path, str]) -> None:
    found = read_json(trained[0] / "int8.json", "record")["val_accuracy"]
    line = f"of the held-out images {100 * found['rounded']:.2f} % rounded, {100 * found['fine_tuned']:.2f} % trained"
    assert line in (trained[0] / "report.html").read_text("utf-8")
    out = io.StringIO()
    prunus.report.print_summary(trained[0], Console(file=out, width=300))
    assert line in out.getvalue() and "8-bit integers, trained for it: " in out.getvalue()


def test_exports_are_made_of_the_weights_that_were_trained_for_it(trained: tuple[Path, str], tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["export", str(trained[0]), "--to", "onnx", "--int8", "--out", str(tmp_path)])
    assert said.exit_code == 0, said.output
    rows = json.loads((tmp_path / "export.json").read_text())
    summary = read_json(trained[0] / "summary.json", "summary")
    assert rows[0]["comparison"]["accuracy"] == pytest.approx(summary["pruned"]["test_accuracy"])
    rounded = summary["int8"]["val_accuracy"]["rounded"]
    assert rows[1]["precision"] == "int8" and rows[1]["comparison"]["accuracy"] > rounded + 0.02


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["epoch", pytest.param("written", marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_in_the_same_bits(
    moment: str,
    trained: tuple[Path, str],
    uneven: Mapping[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, write = RunFolder.record, int8.atomic_write_json

    def killed_after(folder: RunFolder, row: Mapping[str, Any]) -> None:
        record(folder, row)
        if row["stage"] == "int8" and row["epoch"] == 2:
            raise _Killed

    def killed_before(*_: Any) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        if moment == "epoch":
            patch.setattr(RunFolder, "record", killed_after)
        else:
            patch.setattr(int8, "atomic_write_json", killed_before)
        with pytest.raises(_Killed):
            compress(tmp_path / "a", **uneven)
    assert not (tmp_path / "a" / "int8.json").exists() and write is int8.atomic_write_json
    compress(tmp_path / "a", **uneven)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (trained[0] / name).read_bytes(), name
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["stage"] == "int8"] == [1, 2, 3]


@pytest.mark.parametrize("rate", [0.05, 1e9])
def test_a_training_that_ruins_the_network_is_not_delivered(
    rate: float, uneven: Mapping[str, Any], trained: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(trained[0], folder)
    for name in (*FILES, "summary.json", "report.html"):
        (folder / name).unlink()
    settings = {**SETTINGS, **uneven, "out": folder}
    recipe = pipeline.recipes.int8

    def ruinous(run: Any) -> Any:
        return prunus.training.Recipe(1, batch_size=64, learning_rate=rate, flip=False, precision="float32")

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.recipes, "int8", ruinous)
        pipeline.compress(RunConfig.model_validate(settings), Console(file=said, width=400))
    assert recipe is pipeline.recipes.int8
    found = read_json(folder / "int8.json", "record")
    assert found["delivered"] == "rounded" and not (folder / "model.int8.safetensors").exists()
    if rate > 1:
        assert "the training failed, and the file stays as it was: the loss is no longer finite" in said.getvalue()
        assert found["val_accuracy"]["fine_tuned"] is None
    else:
        assert found["val_accuracy"]["fine_tuned"] < found["val_accuracy"]["rounded"]


@pytest.fixture
def untrained(tmp_path: Path) -> Iterator[dict[str, Any]]:
    folder = tmp_path / "run"
    yield {"out": folder}
    assert not (folder / "dense.safetensors").exists() and not (folder / "metrics.jsonl").read_text()


def test_what_onnx_cannot_hold_is_said_before_any_training(
    untrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise ModelError("torch cannot write the network as ONNX: no such operation")

    monkeypatch.setattr(formats.onnx, "exported_program", refuse)
    with pytest.raises(ModelError, match=r"^--int8: torch cannot write the network as ONNX: no such operation$"):
        compress(**untrained)


def test_what_is_not_installed_is_said_before_any_training(
    untrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ConfigError, match=r"needs onnxruntime, not installed here: pip install 'prunus\[onnx\]'"):
        compress(**untrained)


def test_epochs_without_integers_do_nothing() -> None:
    with pytest.raises(ConfigError, match="--int8-epochs 3 does nothing here"):
        prunus.config.load_config(None, {**SETTINGS, "int8": False})
