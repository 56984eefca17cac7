from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from prunus.config import RunConfig
from prunus.errors import ConfigError
from prunus.pipeline.run_folder import RunFolder
from prunus.pipeline.tracking import open_tracker


def config(out: Path, tracker: str | None) -> RunConfig:
    return RunConfig.model_validate({"model": "resnet8", "data": "digits", "macs": 0.5, "out": out, "tracker": tracker})


def row(stage: str, epoch: int, loss: float) -> dict[str, Any]:
    return {"stage": stage, "epoch": epoch, "loss": loss, "val_accuracy": 0.5, "round": "1", "index_histogram": [1, 2]}


def tracked(folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    with open_tracker(config(folder.path, "tensorboard"), folder) as track:
        for found in rows:
            folder.record(found)
            track(found)


def scalars(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    read = EventMultiplexer().AddRunsFromDirectory(str(folder.path / "tensorboard")).Reload()
    run = read.GetAccumulator(".")
    return {tag: [(e.step, round(e.value, 6)) for e in run.Scalars(tag)] for tag in run.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own
def test_tensorboard_shows_every_epoch_once_also_of_a_run_that_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = RunFolder(tmp_path / "run")
    first = [row("dense", 1, 2.0), row("dense", 2, 1.0)]
    tracked(folder, first)
    tracked(folder, [*first, row("search", 1, 0.5)])  # what fit tells again, and what is new
    shown = scalars(folder)
    assert shown["dense/loss"] == [(1, 2.0), (2, 1.0)]
    assert shown["search/loss"] == [(3, 0.5)]
    assert set(shown) == {f"{stage}/{key}" for stage in ("dense", "search") for key in ("loss", "val_accuracy")}


def test_an_unknown_tracker_and_a_missing_package_say_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    with warnings.catch_warnings(action="ignore"), pytest.raises(ConfigError, match=r"accelerate knows .*tensorboard"):
        open_tracker(config(tmp_path, "tensorbord"), folder).__enter__()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="--tracker wandb needs its package: pip install wandb"):
        open_tracker(config(tmp_path, "wandb"), folder).__enter__()
    monkeypatch.setitem(sys.modules, "accelerate.tracking", None)
    with pytest.raises(ConfigError, match=r"--tracker wandb needs accelerate: pip install 'prunus\[trackers\]'"):
        open_tracker(config(tmp_path, "wandb"), folder).__enter__()
