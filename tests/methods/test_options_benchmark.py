"""benchmarks/sparsity_options.py runs from end to end, and what it found is what the defaults rest on."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.criteria.channel_sparsity import channel_sparsity
from prunus.methods import GRIDS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "sparsity_options.py"


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    checkpoint, out = tmp_path / "dense.safetensors", tmp_path / "options.json"
    prunus.save(model, checkpoint, model_name="resnet8", num_classes=10, in_channels=1)
    options = ["--macs", "0.6", "--calibration", "64", "--held-out", "50", "--out", str(out)]
    command = [sys.executable, str(SCRIPT), str(checkpoint), "digits", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(out.read_text())
    assert len(measured["rows"]) == 24 and measured["plans_evaluated"]["0.6"] <= 24
    accuracies = [row["accuracy"] for row in measured["rows"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert (measured["network"], measured["held_out_images"], measured["calibration_images"]) == ("resnet8", 50, 64)
    assert str(tmp_path) not in out.read_text()
    assert subprocess.run([*command[:2], "no.safetensors", "digits"], capture_output=True).returncode == 2


def test_the_defaults_are_among_the_best_that_were_measured() -> None:
    measured = json.loads((ROOT / "docs" / "results" / "benchmarks" / "sparsity_options.json").read_text())
    parameters = list(inspect.signature(channel_sparsity).parameters.values())[1:]
    defaults = {parameter.name: parameter.default for parameter in parameters}
    by_budget: dict[float, list[dict[str, Any]]] = {}
    for row in measured["rows"]:
        by_budget.setdefault(row["budget"]["macs"], []).append(row)
    for rows in by_budget.values():
        assert len(rows) == sum(
            len(grid.get("t", (0,))) * 4 * len(grid["degree"]) for grid in GRIDS["channel_sparsity"]
        )
        best = max(row["accuracy"] for row in rows)
        own = next(row["accuracy"] for row in rows if row["options"] == defaults)
        error = (best * (1 - best) / measured["held_out_images"]) ** 0.5
        assert own >= best - 2 * error
