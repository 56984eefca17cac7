"""benchmarks/allocation.py runs from end to end and goes on; the tables of its page come from what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import prunus

ROOT = Path(__file__).resolve().parent.parent
PAGE = "# Title\n\n<!-- allocation: begin -->\n| typed | 99.9 |\n<!-- allocation: end -->\n\nmore\n"


def script() -> ModuleType:
    """The script as a module: it has no ending, so that people type its name."""
    loader = SourceFileLoader("allocation_table", str(ROOT / "scripts" / "allocation_table"))
    spec = spec_from_loader("allocation_table", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


allocation_table = script().main


def row(way: str, *accuracies: float, criterion: str = "l1_norm") -> dict[str, Any]:
    removed, recalibrated, reconstructed = ({"accuracy": value, "loss": 1 - value} for value in accuracies)
    steps = {"removed": removed, "recalibrated": recalibrated, "reconstructed": reconstructed, "guide": recalibrated}
    return {"criterion": criterion, "normalize": way, "macs": 0.5, **steps}


def results() -> dict[str, Any]:
    trial = {"loss": 0.5, "accuracy": 0.6}
    found = {"networks": 40, "ranking": trial, "best_start": {**trial, "loss": 0.4}, "best": {**trial, "loss": 0.3}}
    return {
        "network": "resnet20",
        "data": "CIFAR-10",
        "dense": {"accuracy": 0.9, "loss": 0.1},
        "judging_images": 2500,
        "calibration_images": 512,
        "seed": 0,
        "versions": {"prunus": "0.1.0"},
        "rows": [
            row("none", 0.1, 0.2, 0.3),
            row("mean", 0.2, 0.5, 0.7),
            row("max", 0.1, 0.6, 0.65),
            row("none", 0.15, 0.4, 0.5, criterion="delivered_energy"),
        ],
        "searches": [{**row("mean", 0.3, 0.55, 0.75), **found}],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "results" / "benchmarks").mkdir(parents=True)
    (tmp_path / "docs" / "allocation.md").write_text(PAGE)
    write(tmp_path, results())
    return tmp_path


def write(root: Path, data: object) -> None:
    (root / "docs" / "results" / "benchmarks" / "allocation.json").write_text(json.dumps(data))


def test_another_dense_network_has_tables_of_its_own(root: Path) -> None:
    other = {**results(), "network": "mobilenetv2", "dense": {"accuracy": 0.8, "loss": 0.1}, "searches": []}
    (root / "docs" / "results" / "benchmarks" / "allocation_other.json").write_text(json.dumps(other))
    assert allocation_table(["--root", str(root)]) == 0
    page = (root / "docs" / "allocation.md").read_text()
    assert page.index("resnet20 on CIFAR-10, 90.0 % dense") < page.index("mobilenetv2 on CIFAR-10, 80.0 % dense")
    assert page.count("### 50 % of the MACs") == 2


def test_a_budget_of_parameters_has_a_table_of_its_own(root: Path) -> None:
    measured: dict[str, Any] = results()
    share = {"params": 0.3}
    for kind in ("rows", "searches"):
        own = {key: value for key, value in measured[kind][0].items() if key != "macs"}
        measured[kind].append({**own, "normalize": "mean", "recover": "reconstruct", **share})
    measured["rows"][-1]["removed"] = {"accuracy": 0.123, "loss": 1.0}
    write(root, measured)
    assert allocation_table(["--root", str(root)]) == 0
    by_macs, by_params = (root / "docs" / "allocation.md").read_text().split("### 30 % of the parameters")
    assert "### 50 % of the MACs" in by_macs and "12.3" not in by_macs
    table, searches = by_params.split("### Widths searched for")
    assert "| `l1_norm` | mean (default) | **12.3** |" in table and table.count("| `") == 1
    assert "| `l1_norm`, mean | 30 % of the parameters | 40 refitted |" in searches and "12.3 → " in searches


def test_the_tables_of_this_page_are_what_was_measured() -> None:
    assert allocation_table(["--check"]) == 0


def test_the_tables_take_the_place_of_typed_ones(root: Path) -> None:
    assert allocation_table(["--check", "--root", str(root)]) == 1
    assert allocation_table(["--root", str(root)]) == 0
    text = (root / "docs" / "allocation.md").read_text()
    assert "typed" not in text and text.startswith("# Title\n") and text.endswith("\n\nmore\n")
    assert "### 50 % of the MACs" in text
    assert "| `l1_norm` | none | 10.0 | 20.0 | 30.0 |" in text
    assert "| `l1_norm` | mean (default) | **20.0** | 50.0 | **70.0** |" in text
    assert "| `l1_norm` | max | 10.0 | **60.0** | 65.0 |" in text
    assert "| `delivered_energy` | none (default) | **15.0** | **40.0** | **50.0** |" in text
    assert "0.80 for the cross-entropy, 0.80 for the accuracy" in text, "ranks 1 2 3 4 and 1 2 4 3"
    found = "| `l1_norm`, mean | 50 % of the MACs | 40 recalibrated | 0.500 → 0.400 → 0.300 "
    assert f"{found}| 20.0 → 30.0 | 50.0 → 55.0 | 70.0 → 75.0 |" in text
    assert allocation_table(["--check", "--root", str(root)]) == 0


def test_what_cannot_be_used_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, {"rows": []})
    assert allocation_table(["--root", str(root)]) == 2
    assert "is not what benchmarks/allocation.py writes" in capsys.readouterr().err
    (root / "docs" / "allocation.md").write_text("# Title\n")
    write(root, results())
    assert allocation_table(["--root", str(root)]) == 2
    assert "lacks the lines <!-- allocation: begin -->" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end_and_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    checkpoint, out = tmp_path / "dense.safetensors", tmp_path / "allocation.json"
    prunus.save(model, checkpoint, model_name="resnet8", num_classes=10, in_channels=1)
    options = ["--criteria", "l1_norm", "--macs", "0.6", "--calibration", "64", "--evaluations", "4"]
    command = [sys.executable, str(ROOT / "benchmarks" / "allocation.py"), str(checkpoint), "digits", *options]
    command += ["--out", str(out)]
    done = subprocess.run([*command, "--ways", "mean"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = json.loads(out.read_text())
    assert subprocess.run([*command, "--ways", "mean", "local"], capture_output=True).returncode == 0
    then = json.loads(out.read_text())
    assert then["rows"][0] == first["rows"][0] and [row["normalize"] for row in then["rows"]] == ["mean", "local"]
    assert then["searches"][0]["networks"] >= 4
    more = [*command, "--ways", "mean", "--params", "0.7", "--evaluations", "0"]
    assert subprocess.run(more, capture_output=True).returncode == 0
    last = json.loads(out.read_text())
    assert last["searches"] == then["searches"] and last["rows"][:2] == then["rows"]
    assert [(row["normalize"], row["params"]) for row in last["rows"][2:]] == [("mean", 0.7)]
    assert str(tmp_path) not in out.read_text()
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert other.returncode == 2 and "was measured with" in other.stderr
