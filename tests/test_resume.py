"""A run that is killed, anywhere, and started again ends with the very same bits as one that was left alone."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import prunus.files
from prunus import pipeline
from prunus.config import RunConfig

RECOVERY = ["--recover", "reconstruct,recalibrate", "--calibration-images", "256"]
TRAINING = ["--distill", "0.5", "--temperature", "3", "--ema", "0.9"]
METHODS = {
    "layer-fusion": ["--method", "layer-fusion", "--macs", "0.5", "--search-epochs", "4", "--remove-after", "1"],
    "iterative": [
        *("--schedule", "iterative", "--rounds", "2", "--size", "0.15MB", *RECOVERY, *TRAINING),
        *("--sparse-epochs", "4", "--rho", "0.1", "--penalty", "sparsity_degree"),
    ],
}
STAGES = {"layer-fusion": ("dense", "search", "finetune"), "iterative": ("dense", "sparse", "search", "finetune")}
COMMAND = ["--model", "resnet8", "--data", "digits", "--epochs", "4", "--finetune-epochs", "8"]
PLACE = ["--threads", "1", "--device", "cpu"]
PATIENCE = 120.0  # seconds that a step of the run may take on a busy machine


def start(method: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prunus", "compress", *COMMAND, *METHODS[method], *PLACE, "--out", str(out)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(method: str, out: Path) -> str:
    process = start(method, out)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def rows_of(out: Path, stage: str) -> int:
    metrics = out / "metrics.jsonl"
    if not metrics.exists():
        return 0
    return sum(json.loads(line)["stage"] == stage for line in metrics.read_text().splitlines())


def kill_in(stage: str, method: str, out: Path) -> None:
    """Start the run and kill it in the epoch after the first one of a stage; while it trains, nobody else gets in."""
    process = start(method, out)
    deadline = time.monotonic() + PATIENCE
    while rows_of(out, stage) < 1:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {stage} within {PATIENCE} s"
        time.sleep(0.005)
    if stage == "dense":
        process.send_signal(signal.SIGSTOP)  # so that it is still at work when the second one comes
        said, _ = (second := start(method, out)).communicate(timeout=PATIENCE)
        assert second.returncode == 2
        assert f"in use by process {process.pid}" in said
        assert "Traceback" not in said
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"


def results(out: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how it got there."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    names = [name for name in ("options.json",) if (out / name).exists()]
    names += ("dense.safetensors", "model.safetensors", "plan.json", "verification.json")
    return {
        **{name: (out / name).read_bytes() for name in names},
        "metrics": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        "recovery": [{key: value for key, value in row.items() if key != "seconds"} for row in summary["recovery"]],
        "accuracies": [summary[side]["test_accuracy"] for side in ("dense", "pruned")],
        "epochs": summary["epochs"],
    }


@pytest.mark.parametrize("method", METHODS)
def test_killed_in_every_stage_and_started_again(method: str, tmp_path: Path) -> None:
    finish(method, tmp_path / "whole")
    for stage in STAGES[method]:
        kill_in(stage, method, tmp_path / "parts")
        assert not (tmp_path / "parts" / "summary.json").exists()
    said = finish(method, tmp_path / "parts")
    assert "dense      done before" in said
    assert "search     done before" in said
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert not (tmp_path / "parts" / "checkpoints").exists()


def in_process(out: Path, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "model": "resnet8",
        "data": "digits",
        "epochs": 1,
        "finetune_epochs": 2,
        "threads": 1,
        "device": "cpu",
    }
    settings["calibration_images"] = 128
    pipeline.compress(RunConfig.model_validate({**settings, "out": out, **changes}), Console(file=io.StringIO()))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "layer-fusion", "macs": 0.5, "search_epochs": 3, "remove_after": 1},
        {
            "schedule": "iterative",
            "rounds": 2,
            "macs": 0.5,
            "distill": 0.5,
            "ema": 0.9,
            "sparse_epochs": 2,
            "method": "channel-sparsity",
            "calibrate_options": True,
        },
    ],
    ids=["layer-fusion", "iterative"],
)
def test_stopped_right_after_every_file_that_it_writes(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(tmp_path / "whole", **changes)
    write = prunus.files.atomic_write_bytes
    written: dict[str, int] = {}
    stopped_after: list[str] = []

    def write_and_stop(path: Path, data: bytes) -> None:
        write(path, data)
        name = Path(path).name
        written[name] = written.get(name, 0) + 1
        once_more = len(data) if ".ckpt." in name else 0  # a checkpoint is another file after every epoch
        if f"{name} {once_more}" not in stopped_after:
            stopped_after.append(f"{name} {once_more}")
            raise KeyboardInterrupt

    monkeypatch.setattr(prunus.files, "atomic_write_bytes", write_and_stop)
    for _ in range(40):
        try:
            in_process(tmp_path / "parts", **changes)
        except KeyboardInterrupt:
            continue
        break
    monkeypatch.undo()
    names = {entry.split()[0] for entry in stopped_after}
    assert {"config.yaml", "environment.json", "dense.safetensors", "plan.json", "verification.json"} <= names
    assert {"recovered-1.ckpt.safetensors", "recovery.json"} <= names
    assert {"removed.safetensors", "model.safetensors", "summary.json", "report.html"} <= names
    if "sparse_epochs" in changes:
        assert {"sparse.ckpt.new.safetensors", "sparse.safetensors", "options.json"} <= names
    assert {"dense.ckpt.new.safetensors", "finetune.ckpt.new.safetensors"} <= names
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
