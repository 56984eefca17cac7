"""benchmarks/recovery.py runs from end to end, and names no place of the machine it ran on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prunus

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "recovery.py"


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    checkpoint, out = tmp_path / "dense.safetensors", tmp_path / "recovery.json"
    prunus.save(model, checkpoint, model_name="resnet8", num_classes=10, in_channels=1)
    options = ["--criteria", "l1_norm", "--macs", "0.6", "--calibration", "64", "--out", str(out)]
    command = [sys.executable, str(SCRIPT), str(checkpoint), "digits", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(out.read_text())
    (row,) = measured["rows"]
    steps = ["removed", "recalibrated", "compensated", "reconstructed", "reconstructed, recalibrated"]
    assert list(row["accuracy"]) == list(row["seconds"]) == steps
    assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"].values())
    assert (
        not measured["batchnorm_folded"] and measured["network"] == "resnet8" and measured["calibration_images"] == 64
    )
    assert str(tmp_path) not in out.read_text()
    folded = subprocess.run([*command, "--fold"], capture_output=True, text=True)
    assert folded.returncode == 0, folded.stderr
    again = json.loads(out.read_text())
    assert again["batchnorm_folded"] and again["params"] < measured["params"]
    assert again["dense_accuracy"] == pytest.approx(measured["dense_accuracy"], abs=0.02)
    assert list(again["rows"][0]["accuracy"]) == ["removed", "compensated", "reconstructed"]
    assert subprocess.run([*command[:2], "no.safetensors", "digits"], capture_output=True).returncode == 2
