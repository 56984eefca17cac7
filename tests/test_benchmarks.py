"""The benchmark runs from end to end, and the tables of its page come from what it measured."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prunus.graph.channels import LayerTime
from tests.handmade import row_graph

ROOT = Path(__file__).resolve().parent.parent
PAGE = "# Title\n\n<!-- analysis: begin -->\n| typed | 99.9 |\n<!-- analysis: end -->\n\nmore\n"


def script() -> ModuleType:
    """The script as a module: it has no ending, so that people type its name."""
    loader = SourceFileLoader("benchmark_table", str(ROOT / "scripts" / "benchmark_table"))
    spec = spec_from_loader("benchmark_table", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


benchmark_table = script().main


def trials(seconds: float, steps: dict[str, float], params: int = 25) -> dict[str, Any]:
    return {"params": params, "runs": True, "seconds": seconds, "steps": steps, "all_seconds": [seconds]}


def ours(seconds: float) -> dict[str, Any]:
    return trials(seconds, {"trace": 0.1, "score": 0.02, "plan": 0.003, "remove": 0.4})


def results() -> dict[str, Any]:
    theirs = trials(2.0, {"build": 1.2, "init": 0.3, "step": 0.5}, params=50)
    broken = {"error": "ValueError: no | such shape"}
    speed = {"input": [1, 3, 224, 224], "params": 100, "goal": 0.5}
    return {
        "versions": {"python": "3.12.0", "torch-pruning": "1.6.1"},
        "threads": 1,
        "repeats": 5,
        "pruning_ratio": 0.5,
        "goals": {"memory_bytes": 200_000_000},
        "speed": [
            {"network": "timm:resnet50", **speed, "prunus": ours(0.523), "torch_pruning": theirs},
            {"network": "timm:densenet201", **speed, "goal": 0.05, "prunus": ours(0.2), "torch_pruning": theirs},
            {"network": "resnet8", **speed, "prunus": ours(0.2), "torch_pruning": broken},
        ],
        "scaling": [
            {"blocks": 150, "convolutions": 301, "params": 11_000_000, "goal": 1.2, "prunus": ours(0.5)},
            {"blocks": 1500, "convolutions": 3001, "params": 110_000_000, "goal": 1.2, "prunus": ours(5.95)},
            {"blocks": 3000, "convolutions": 6001, "params": 220_000_000, "goal": 1.2, "prunus": ours(18.5)},
        ],
        "memory": [
            {
                "network": "timm:resnet50",
                "model_bytes": 102_000_000,
                "pruned_bytes": 30_000_000,
                "rise_bytes": 230_000_001,
            },
            {"network": "residual:1500", "model_bytes": 4_000_000, "pruned_bytes": 3_000_000, "rise_bytes": 2_000_000},
            {"network": "timm:vgg", "error": "it was killed"},
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, results())
    (tmp_path / "docs" / "benchmarks.md").write_text(PAGE)
    return tmp_path


def write(root: Path, measured: object) -> None:
    folder = root / "docs" / "results" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(measured))


def test_the_tables_of_this_page_are_what_was_measured() -> None:
    assert benchmark_table(["--check"]) == 0


def test_what_was_measured_becomes_rows_and_typed_rows_go(root: Path) -> None:
    assert benchmark_table(["--root", str(root)]) == 0
    text = (root / "docs" / "benchmarks.md").read_text()
    assert "99.9" not in text
    assert text.startswith(
        "# Title\n\n<!-- analysis: begin -->\nMedian of 5, threads: 1. Versions: python 3.12.0, torch-p"
    )
    assert text.endswith("<!-- analysis: end -->\n\nmore\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[2:5] == [
        "| resnet50 | 1×3×224×224 | 0.523 | 0.100 | 0.020 | 0.003 | 0.400 | 2.000 | 1.200 | 0.300 | 0.500 "
        "| 0.262 | ≤ 0.5 ✓ | 25.0% / 50.0% |",
        "| densenet201 | 1×3×224×224 | 0.200 | 0.100 | 0.020 | 0.003 | 0.400 | 2.000 | 1.200 | 0.300 | 0.500 "
        "| 0.100 | ≤ 0.05 ✗ | 25.0% / 50.0% |",
        "| resnet8 | 1×3×224×224 | 0.200 | 0.100 | 0.020 | 0.003 | 0.400 | failed: ValueError: no / such shape | – | – "
        "| – | – | ≤ 0.5 | 25.0% / – |",
    ]
    assert rows[7:10] == [
        "| 150 | 301 | 11.0 M | 0.500 | 0.100 | 0.020 | 0.003 | 0.400 | 1 | – | – |",
        "| 1,500 | 3,001 | 110.0 M | 5.950 | 0.100 | 0.020 | 0.003 | 0.400 | 10 | 11.9 | ≤ 12 ✓ |",
        "| 3,000 | 6,001 | 220.0 M | 18.500 | 0.100 | 0.020 | 0.003 | 0.400 | 20 | 37.0 | ≤ 24 ✗ |",
    ]
    assert rows[12:] == [
        "| resnet50 | 102.00 MB | 30.00 MB | 230.00 MB | 200.00 MB | ≤ 200.00 MB ✗ |",
        "| residual network, 1,500 blocks | 4.00 MB | 3.00 MB | 2.00 MB | −1.00 MB | ≤ 200.00 MB ✓ |",
        "| vgg | – | – | failed: it was killed | – | – |",
    ]
    assert benchmark_table(["--root", str(root), "--check"]) == 0


def test_a_typed_figure_is_found(root: Path) -> None:
    benchmark_table(["--root", str(root)])
    page = root / "docs" / "benchmarks.md"
    page.write_text(page.read_text().replace("0.262", "0.162"))
    assert benchmark_table(["--root", str(root), "--check"]) == 1
    assert "0.162" in page.read_text()
    assert benchmark_table(["--root", str(root)]) == 0
    assert "0.262" in page.read_text()


def test_without_a_measurement_the_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text(PAGE)
    assert benchmark_table(["--root", str(tmp_path)]) == 0
    assert page.read_text() == PAGE.replace("| typed | 99.9 |", "Not measured yet.")


@pytest.mark.parametrize("measured", [{"speed": 3}, [], {**results(), "speed": [{}]}, {**results(), "memory": 5}])
def test_a_file_that_is_something_else_is_refused(
    root: Path, measured: object, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root, measured)
    assert benchmark_table(["--root", str(root)]) == 2
    assert "is not what benchmarks/analysis.py writes" in capsys.readouterr().err
    assert (root / "docs" / "benchmarks.md").read_text() == PAGE


def test_a_page_without_the_markers_is_left_alone(root: Path) -> None:
    (root / "docs" / "benchmarks.md").write_text("nothing\n")
    assert benchmark_table(["--root", str(root)]) == 2
    assert (root / "docs" / "benchmarks.md").read_text() == "nothing\n"


def test_the_figures_of_a_training_become_rows(root: Path) -> None:
    row = {"network": "resnet20", "batch_size": 128, "steps": 10, "bare_seconds": 2.0, "fit_seconds": 2.08}
    row |= {"ratio": 1.04, "processor_ratio": 1.061, "all_ratios": [1.03, 1.05], "checkpoint_seconds": 0.02}
    told = {"torch": "2.13.0", "device": "a processor", "threads": 1, "turns": 2, "goal": 1.05, "networks": [row]}
    (root / "docs" / "results" / "benchmarks" / "training.json").write_text(json.dumps(told))
    assert benchmark_table(["--root", str(root)]) == 0
    rows = [line for line in (root / "docs" / "benchmarks.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[-1] == "| resnet20 | 128 | 10 | 2.000 | 2.080 | 1.040 | 1.061 | ≤ 1.05 ✓ | 0.020 |"


@pytest.mark.slow
def test_fit_is_timed_beside_a_bare_loop(tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--networks", "resnet8", "--turns", "2"]
    command += ["--steps", "3", "--batch-size", "4", "--device", "cpu", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["networks"]
    assert (row["network"], row["batch_size"], row["steps"], len(row["all_ratios"])) == ("resnet8", 4, 3, 2)
    assert row["ratio"] == pytest.approx(row["fit_seconds"] / row["bare_seconds"], rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is None, reason="needs the extra `bench`")
def test_the_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "results" / "benchmarks" / "analysis.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "analysis.py"), "--networks", "resnet8", "--repeats", "1"]
    done = subprocess.run([*command, "--blocks", "1", "2", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(out.read_text())
    assert (measured["threads"], measured["repeats"]) == (1, 1)
    assert str(ROOT) not in out.read_text()

    (row,) = measured["speed"]
    assert (row["network"], row["input"], row["params"], row["goal"]) == ("resnet8", [1, 3, 32, 32], 78_042, 0.5)
    for tool, steps in (("prunus", "trace score plan remove"), ("torch_pruning", "build init step")):
        found = row[tool]
        assert found["runs"] and 0 < found["params"] < row["params"] / 2
        assert list(found["steps"]) == steps.split() and all(seconds > 0 for seconds in found["steps"].values())
        assert sum(found["steps"].values()) == pytest.approx(found["seconds"], abs=1e-4), "every part counts once"
        assert found["all_seconds"] == [found["seconds"]]
    assert [(row["blocks"], row["convolutions"]) for row in measured["scaling"]] == [(1, 3), (2, 5)]
    assert [row["network"] for row in measured["memory"]] == ["resnet8", "residual:2"]
    assert all(0 < row["pruned_bytes"] < row["model_bytes"] and row["rise_bytes"] > 0 for row in measured["memory"])

    (tmp_path / "docs" / "benchmarks.md").write_text(PAGE)
    assert benchmark_table(["--root", str(tmp_path)]) == 0
    assert "| resnet8 | 1×3×32×32 |" in (tmp_path / "docs" / "benchmarks.md").read_text()


def test_number_formats_are_timed_and_become_rows(root: Path, tmp_path: Path) -> None:
    out = root / "docs" / "results" / "benchmarks" / "depthwise.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "depthwise.py"), "--networks", "mobilenetv2_half"]
    command += ["--turns", "1", "--batch-size", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["layers"]] == ["3×3", "3×3, stride 2", "5×5", "3×3, dilation 2"]
    (network,) = found["networks"]
    assert all(value > 0 for row in (*found["layers"], network) for value in row["milliseconds"].values())
    network["milliseconds"] = {"float32": 30.0, "bfloat16": 40.0, "fit": 20.0}
    out.write_text(json.dumps(found))
    assert benchmark_table(["--root", str(root)]) == 0
    page = (root / "docs" / "benchmarks.md").read_text()
    assert "| mobilenetv2_half | 30.0 | 40.0 | 20.0 | 2.00 | 1.50 |" in page
    assert "| depthwise, 3×3, stride 2 | " in page


@pytest.mark.slow
def test_the_search_is_timed_beside_a_dense_training_and_written_down(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "results" / "benchmarks" / "dynamic_cost.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "dynamic_cost.py"), "--data", "digits", "--model", "resnet8"]
    command += ["--images", "300", "--search-epochs", "4", "--finetune-epochs", "1", "--remove-after", "1"]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, timeout=120)
    found = json.loads(out.read_text())
    assert found["epochs"] == {"dense": 5, "search": 5}
    assert len(found["processor_ratio_by_epoch"]) == 6
    assert found["trained_macs_by_search_epoch"][-1] < found["macs"]["dense"]
    assert found["ratio"] == pytest.approx(found["seconds"]["search"] / found["seconds"]["dense"], rel=0.05)
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text(PAGE)
    assert benchmark_table(["--root", str(tmp_path)]) == 0
    assert "resnet8, 300 images of UCI digits, 5 epochs on either side" in page.read_text()
    assert "| processor |" in page.read_text()


@pytest.mark.slow
def test_what_a_pruner_adds_to_a_step_is_timed(tmp_path: Path) -> None:
    out = tmp_path / "own_loop.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "own_loop.py"), "--model", "resnet8", "--steps", "2"]
    subprocess.run([*command, "--batch-size", "4", "--out", str(out)], check=True, capture_output=True, timeout=120)
    found = json.loads(out.read_text())
    assert (found["model"], found["steps"], found["batch_size"], found["threads"]) == ("resnet8", 2, 4, 1)
    assert set(found["ratio"]) == {"penalty None", "penalty bn_scale", "penalty group_lasso"}
    assert all(ratio > 0 for ratio in found["ratio"].values()) and found["step_seconds"] > 0


def benchmark_of_latency() -> ModuleType:
    loader = SourceFileLoader("benchmark_of_latency", str(ROOT / "benchmarks" / "latency.py"))
    spec = spec_from_loader("benchmark_of_latency", loader)
    assert spec
    latency = module_from_spec(spec)
    loader.exec_module(latency)
    return latency


def test_the_smallest_plan_keeps_so_many_channels_in_every_layer() -> None:
    graph = row_graph()
    scores = {group.name: torch.rand(group.size) for group in graph.groups}
    for channels in (1, 2):
        plan = benchmark_of_latency().least_of(graph, scores, channels)
        assert {len(group.keep) for group in plan.groups} == {channels}


def test_the_quickest_plan_that_keeps_as_much_of_the_scores() -> None:
    """Channels of conv2 take nearly all of the time, so they go first, and as many as may."""
    latency = benchmark_of_latency()
    graph = row_graph().with_times({"conv1.weight": LayerTime(per_row=1), "conv2.weight": LayerTime(per_row=1000)})
    worth = {group.name: torch.ones(group.size) for group in graph.groups}
    scores = {"conv1": torch.full((6,), 1000.0), "conv2": torch.ones(5)}
    plan = latency.quickest(graph, scores, worth, 0.8)
    assert latency.kept(worth, plan) == pytest.approx(9 / 11)
    assert {group.name: len(group.keep) for group in plan.groups} == {"conv1": 6, "conv2": 3}


def test_the_figures_of_alignment_become_rows(root: Path) -> None:
    loader = SourceFileLoader("benchmark_of_alignment", str(ROOT / "benchmarks" / "alignment.py"))
    spec = spec_from_loader("benchmark_of_alignment", loader)
    assert spec
    alignment = module_from_spec(spec)
    loader.exec_module(alignment)
    out = root / "docs" / "results" / "benchmarks" / "alignment.json"
    few = ["--networks", "resnet8", "--runtimes", "torch", "--multiples", "4", "64", "--runs", "2", "--out", str(out)]
    assert alignment.main(few) == 0
    found = json.loads(out.read_text())["rows"]
    assert [row["file"] for row in found] == ["dense, not folded", "dense", "multiples of 4"]  # 64: no such network
    assert found[1]["faster"] == found[1]["fewer_macs"] == 1 and found[2]["fewer_macs"] >= 2
    assert benchmark_table(["--root", str(root)]) == 0
    (row,) = [
        line
        for line in (root / "docs" / "benchmarks.md").read_text().splitlines()
        if "multiples of 4" in line and line.startswith("| resnet8")
    ]
    assert f"{found[2]['faster'] / found[2]['fewer_macs']:.2f} |" in row


def test_the_figures_of_latency_become_rows(root: Path) -> None:
    by_macs = {"kept": 0.8, "macs_share": 0.5, "predicted_share": 0.6, "measured_share": 0.66}
    by_time = {"kept": 0.81, "macs_share": 0.61, "predicted_share": 0.54, "measured_share": 0.55, "multiple": 8}
    row = {"network": "resnet20", "share": 0.5, "macs": by_macs, "latency": by_time}
    row |= {"version": "ONNX Runtime 1", "table_error": 0.07, "network_error": 0.03}
    told = {"processor": "a processor", "criterion": "l1_norm", "runs": 9, "rows": [row]}
    told["floors"] = [{"network": "resnet20", "channels": 1, "macs_share": 0.02, "measured_share": 0.4}]
    (root / "docs" / "results" / "benchmarks" / "latency.json").write_text(json.dumps(told))
    assert benchmark_table(["--root", str(root)]) == 0
    rows = [line for line in (root / "docs" / "benchmarks.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[-1] == "| resnet20 | 1 | 50.00× | 2.50× |"
    assert "| resnet20 | 0.5 | 0.8000 | 0.660 | 0.8100 | 8 | 0.610 | 0.550 | 1.20× | 0.540 |" in rows
