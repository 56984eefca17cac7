"""The benchmark runs from end to end on runs, and the tables of its page come from what it measured."""

from __future__ import annotations

import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.exported import write_digits_run

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = "# Title\n\n<!-- deployment: begin -->\n| typed | 99.9 |\n<!-- deployment: end -->\n\nmore\n"


def script(name: str, file: Path) -> Any:
    """A script as a module, though its name may have no ending."""
    loader = SourceFileLoader(name, str(file))
    spec = spec_from_loader(name, loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for types
    loader.exec_module(module)
    return module


deployment_table = script("deployment_table", ROOT / "scripts" / "deployment_table").main
benchmark = script("deployment_benchmark", ROOT / "benchmarks" / "deployment.py").main


def row(budget: str, precision: str, runtime: str = "ort", **values: Any) -> dict[str, Any]:
    whole = {"budget": budget, "precision": precision, "runtime": runtime, "version": f"{runtime} 1.0"}
    return {**whole, "p10_ms": 0.1, "p90_ms": 9.0, **values}


def results() -> dict[str, Any]:
    rows = [
        row("dense", "float32", accuracy=0.9, size_bytes=1000, median_ms=4.0, macs=100),
        row("dense", "int8", accuracy=0.8951, size_bytes=290, median_ms=1.0, macs=100),
        row("0.5 MACs", "float32", accuracy=0.88, size_bytes=600, median_ms=2.0, macs=50),
        row("0.5 MACs", "int8", accuracy=0.87, size_bytes=240, median_ms=0.8, macs=50),
        row("dense", "float32", "ncnn", accuracy=0.9, size_bytes=1000, median_ms=3.0, macs=100),
        row("0.5 MACs", "float32", "ncnn", accuracy=0.88, size_bytes=600, median_ms=2.0, macs=50),
    ]
    about = {
        "network": "resnet20",
        "data": "digits",
        "test_images": 360,
        "processor": "CPU X",
        "threads": 1,
        "batch": 1,
    }
    return {**about, "calls": 300, "rows": rows}


def folder_with(tmp_path: Path, *found: dict[str, Any], page: str = PAGE) -> Path:
    (tmp_path / "docs" / "results" / "deployment").mkdir(parents=True)
    (tmp_path / "docs" / "deployment.md").write_text(page)
    for one in found:
        (tmp_path / "docs" / "results" / "deployment" / f"{one['network']}.json").write_text(json.dumps(one))
    return tmp_path / "docs" / "deployment.md"


def test_the_tables_come_from_the_figures(tmp_path: Path) -> None:
    page = folder_with(tmp_path, results())
    assert deployment_table(["--root", str(tmp_path), "--check"]) == 1
    assert deployment_table(["--root", str(tmp_path)]) == 0
    assert deployment_table(["--root", str(tmp_path), "--check"]) == 0
    text = page.read_text()
    assert text.startswith("# Title\n") and text.endswith("more\n") and "typed" not in text
    assert "| dense | float32 | 90.00 | 1,000 | 4 | 0.1 – 9 |  |  |  |\n" in text
    assert "| 0.5 MACs | float32 | 88.00 | 600 | 2 | 0.1 – 9 | 2.00× | 2.00× | 1.00 |\n" in text
    assert "| 0.5 MACs | int8 | 87.00 | 240 | 0.8 | 0.1 – 9 | 1.25× | 2.00× | 0.62 |\n" in text
    assert text.index("ort 1.0:") < text.index("ncnn 1.0:")


def test_the_page_says_how_a_network_was_made(tmp_path: Path) -> None:
    run = {"budget": "0.5 MACs", "round_to": 16, "finetune_epochs": 12, "distill": 0.7, "dropped_branches": ["a", "b"]}
    page = folder_with(tmp_path, {**results(), "runs": [run, {**run, "distill": 0.0, "dropped_branches": ["a"]}]})
    assert deployment_table(["--root", str(tmp_path)]) == 0
    made = "widths in multiples of 16, 12 epochs of fine-tuning"
    assert f" 0.5 MACs: 2 residual branches left out, {made} with the dense network as teacher." in page.read_text()
    assert f" 0.5 MACs: 1 residual branch left out, {made}.\n" in page.read_text()


def test_goals_are_judged_by_the_figures(tmp_path: Path) -> None:
    page = folder_with(tmp_path, results())
    deployment_table(["--root", str(tmp_path)])
    lines = [line for line in page.read_text().splitlines() if line.startswith(("| speed-up", "| int8"))]
    assert lines == [
        "| speed-up ≥ 0.8 × the reduction of MACs | 0.5 MACs in ONNX Runtime: 1.00 | 0.5 MACs in ncnn: 0.75 |",
        "| int8 loses ≤ 0.5 points | dense in ONNX Runtime: −0.49 | 0.5 MACs in ONNX Runtime: −1.00 |",
        "| int8 file ≤ 0.3 × float32 | dense in ONNX Runtime: 0.290 | 0.5 MACs in ONNX Runtime: 0.400 |",
    ]


def test_what_cannot_be_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_with(tmp_path / "marks", results(), page="# No marks\n")
    assert deployment_table(["--root", str(tmp_path / "marks")]) == 2
    assert "lacks the lines" in capsys.readouterr().err
    broken = results()
    del broken["rows"][0]
    folder_with(tmp_path / "rows", broken)
    assert deployment_table(["--root", str(tmp_path / "rows")]) == 2
    assert "holds what the benchmark does not write" in capsys.readouterr().err
    page = folder_with(tmp_path / "none")
    assert deployment_table(["--root", str(tmp_path / "none")]) == 0 and "Not measured yet." in page.read_text()


def test_the_page_is_what_the_figures_give() -> None:
    assert deployment_table(["--check"]) == 0


def test_the_benchmark_measures_a_run(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_digits_run(tmp_path / "a")
    options = ["--runtimes", "ort", "--calls", "3", "--samples", "90", "--out", str(tmp_path)]
    assert benchmark([str(tmp_path / "a"), *options]) == 0
    found = json.loads((tmp_path / "resnet8.json").read_text())
    assert [(one["budget"], one["precision"]) for one in found["rows"]] == [
        ("dense", "float32"),
        ("dense", "int8"),
        ("0.5 MACs", "float32"),
        ("0.5 MACs", "int8"),
    ]
    assert found["runs"] == [
        {"budget": "0.5 MACs", "round_to": 1, "finetune_epochs": 15, "distill": 0.0, "dropped_branches": []}
    ]
    assert found["test_images"] == 90 and found["data"] == "digits"
    dense, dense_int8, small, small_int8 = found["rows"]
    assert dense["accuracy"] == dense["torch_accuracy"] and small["accuracy"] == small["torch_accuracy"]
    assert dense["macs"] == dense_int8["macs"] > small["macs"] == small_int8["macs"]
    assert all(one["median_ms"] > 0 and one["runtime"] == "ort" for one in found["rows"])
    page = folder_with(tmp_path / "root", found)
    assert deployment_table(["--root", str(tmp_path / "root")]) == 0 and "### resnet8" in page.read_text()


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits_run(tmp_path / "a")
    assert benchmark([str(tmp_path / "a"), str(tmp_path / "a"), "--runtimes", "torch"]) == 2
    assert "the runs must be of one network, with a budget" in capsys.readouterr().err
