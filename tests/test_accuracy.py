"""benchmarks/accuracy.py goes on where it stopped, and docs/results.md comes from what it measured."""

from __future__ import annotations

import importlib
import json
import signal
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import prunus
from prunus.cost import count_cost
from prunus.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAGE = "# Results\n\n<!-- accuracy: begin -->\ntyped\n<!-- accuracy: end -->\nmore\n"
Figures = dict[str, Any]


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own handlers stay
    return importlib.import_module("accuracy")


@pytest.fixture
def table() -> ModuleType:
    """The script as a module: it has no ending, so that people type its name."""
    loader = SourceFileLoader("accuracy_table", str(ROOT / "scripts" / "accuracy_table"))
    spec = spec_from_loader("accuracy_table", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    file = tmp_path / "dense.safetensors"
    prunus.save(model, file, model_name="resnet8", num_classes=10, in_channels=1)
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    small = ["--budgets", "0.5", "--finetune-epochs", "1", "--rates", "0.05", "--calibration", "32"]
    return ["--networks", f"resnet8={file}", "--data", "digits", "--device", "cpu", *small, *folders]


def read(folder: Path) -> dict[str, Figures]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end_and_leaves_what_is_there(
    accuracy: ModuleType, table: ModuleType, command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "docs" / "results" / "accuracy"
    command += ["--methods", "l1_norm", "random", "--out", str(out)]
    assert accuracy.main(command) == 0
    cells = read(out)
    kept = "resnet8_macs-0.5_l1_norm_seed-0"
    assert set(cells) == {
        "resnet8_dense_seed-0",
        "resnet8_learning-rate",
        kept,
        "resnet8_macs-0.5_random_seed-0",
    }
    cell = cells[kept]
    steps = ["dense", "removed", "recalibrated", "reconstructed", "reconstructed, recalibrated", "recovered", "trained"]
    assert list(cell["held_out_accuracy"]) == steps
    assert (
        0.45 < cell["macs_share"] <= 0.5 and cell["epochs"] == {"train": 1} and cell["recipe"]["learning_rate"] == 0.05
    )
    assert isinstance(cell["bfloat16"], bool) and cells["resnet8_dense_seed-0"]["bfloat16"] is None
    saved = tmp_path / "work" / kept / "model.safetensors"
    assert cell["size_bytes"] == saved.stat().st_size
    assert cell["params"] == sum(parameter.numel() for parameter in prunus.load(saved).parameters())
    assert str(tmp_path) not in json.dumps(cells)

    (out / "resnet8_macs-0.5_random_seed-0.json").unlink()
    before = (out / f"{kept}.json").stat().st_mtime_ns
    assert accuracy.main([*command, "--max-minutes", "0"]) == 3
    assert "resnet8_macs-0.5_random_seed-0" not in read(out)
    assert accuracy.main(command) == 0
    assert (out / f"{kept}.json").stat().st_mtime_ns == before
    assert (
        read(out)["resnet8_macs-0.5_random_seed-0"]["test_accuracy"]
        == cells["resnet8_macs-0.5_random_seed-0"]["test_accuracy"]
    )

    page = tmp_path / "docs" / "results.md"
    page.write_text(PAGE)
    assert table.main(["--root", str(tmp_path)]) == 0
    text = page.read_text()
    assert f"| l1_norm | {100 * cell['test_accuracy']:.2f} (1) |" in text
    assert "typed" not in text and text.endswith("<!-- accuracy: end -->\nmore\n")
    assert (tmp_path / "docs" / "results" / "accuracy-resnet8.svg").read_text().count("<circle") == 2


@pytest.mark.slow
def test_a_cell_that_was_stopped_goes_on_to_the_same_bits(
    accuracy: ModuleType, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command += ["--methods", "B", "--finetune-epochs", "4"]
    assert accuracy.main(command) == 0
    whole = (tmp_path / "work" / "resnet8_macs-0.5_B_seed-0" / "model.safetensors").read_bytes()
    rows: list[str] = []

    def stop_once(clock: object, cell: object, row: Figures) -> None:
        rows.append(f"{row['stage']} {row['epoch']}")
        if rows[-1] in {"search 1", "train 1"} and rows.count(rows[-1]) == 1:
            raise accuracy.OutOfTimeError

    monkeypatch.setattr(accuracy._Clock, "__call__", stop_once)
    (tmp_path / "out").rename(tmp_path / "first")
    (tmp_path / "out").mkdir()
    rate = "resnet8_learning-rate.json"
    (tmp_path / "out" / rate).write_bytes((tmp_path / "first" / rate).read_bytes())
    again = [*command, "--work", str(tmp_path / "again")]
    assert [accuracy.main(again) for _ in range(3)] == [3, 3, 0]
    stages = ["search 1", "search 1", "search 2", "train 1", "train 1", "train 2"]  # a checkpoint's epochs come again
    assert rows == stages
    assert (tmp_path / "again" / "resnet8_macs-0.5_B_seed-0" / "model.safetensors").read_bytes() == whole
    found = read(tmp_path / "out")["resnet8_macs-0.5_B_seed-0"]
    assert found["epochs"] == {"search": 2, "train": 2} and "searched, reconstructed" in found["held_out_accuracy"]


def test_a_cell_that_fails_is_written_down_and_stops_no_other(
    accuracy: ModuleType, command: list[str], tmp_path: Path
) -> None:
    command += ["--methods", "B", "dense_longer"]  # no epoch is left for a search in one
    assert accuracy.main(command) == 1
    cells = read(tmp_path / "out")
    assert cells["resnet8_macs-0.5_B_seed-0"]["failed"].startswith("ConfigError: the dynamic search takes half")
    assert "test_accuracy" in cells["resnet8_dense_longer_seed-0"]
    first = cells["resnet8_macs-0.5_B_seed-0"]["date"]
    assert accuracy.main(command) == 1 and first  # tried again


def test_the_main_rows_of_the_first_seed_come_first(accuracy: ModuleType, command: list[str]) -> None:
    arguments = accuracy.read_arguments([*command, "--budgets", "0.35", "0.2", "--seeds", "0", "1", "--ablate", "A"])
    names = [cell.name.removeprefix("resnet8_") for cell in accuracy.order(arguments)]
    assert len(set(names)) == len(names)
    assert names[:3] == ["dense_seed-0", "macs-0.35_A_seed-0", "macs-0.35_B-widths_seed-0"]
    places = [names.index(f"macs-{one}") for one in ("0.35_tp_group_seed-0", "0.2_A_seed-0", "0.35_random_seed-0")]
    places += [names.index(f"macs-{one}") for one in ("0.35_A_seed-1", "0.35_A-without-criterion_seed-0")]
    assert "macs-0.35_A-with-ema_seed-1" in names
    assert places == sorted(places) and names[-1] == "macs-0.2_scratch_e_seed-1"


def test_a_method_may_lack_a_part_or_have_more(accuracy: ModuleType) -> None:
    methods = importlib.import_module("accuracy_methods")
    assert methods.find_method("A-with-ema").ema > 0
    assert methods.find_method("A-with-ema").label == "A: channel sparsity, with ema"
    assert methods.find_method("A-without-allocation").scope == "local"
    assert methods.find_method("A-without-criterion").criterion == "random"
    with pytest.raises(ConfigError, match="there is no method 'A-without-taste'"):
        methods.find_method("A-without-taste")


def test_a_cell_trains_as_its_method_and_its_network_ask(
    accuracy: ModuleType, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cell = importlib.import_module("accuracy_run"), importlib.import_module("accuracy_cell")
    monkeypatch.setitem(run.RECIPES, "resnet8", {"batch_size": 7, "precision": "float32"})
    data = prunus.load_data("digits")
    settings = cell.Settings(
        data=data,
        split=data.split(0.1, 0),
        checkpoints={"resnet8": tmp_path / "dense.safetensors"},
        work=tmp_path,
        finetune_epochs=1,
        dense_epochs=3,
        calibration=32,
        device=torch.device("cpu"),
        on_epoch=lambda *_: None,
    )
    recipes = {
        name: run.Run(cell.Cell("resnet8", 0.5, name), settings, 0.05).recipe()
        for name in ("A-with-ema", "A", "scratch_e")
    }
    assert [recipe.ema for recipe in recipes.values()] == [0.99, 0, 0]
    assert {(recipe.batch_size, recipe.precision) for recipe in recipes.values()} == {(7, "float32")}
    assert recipes["scratch_e"].epochs == 3


@pytest.mark.parametrize("which", ["group", "magnitude"])
def test_torch_pruning_comes_as_close_to_the_budget_as_it_goes(accuracy: ModuleType, which: str) -> None:
    pytest.importorskip("torch_pruning")
    methods = importlib.import_module("accuracy_methods")
    torch.manual_seed(0)
    model, example = prunus.build_model("resnet8", in_channels=1).eval(), torch.rand(1, 1, 8, 8)
    whole = count_cost(model, example).macs
    small, ratio = methods.prune_with_torch_pruning(model, which, whole // 2, example)
    left = count_cost(small, example).macs / whole
    assert 0.48 < left <= 0.5 and 0 < ratio < 1
    assert small(example).shape == (1, 10) and count_cost(model, example).macs == whole


def cell(method: str, test: float, **changes: Any) -> Figures:
    held = {"dense": 0.9, "removed": 0.2, "recalibrated": 0.5, "recovered": 0.83, "trained": test}
    figures = {"macs_left": 20_000_000, "macs_share": 0.349, "params": 90_000, "size_bytes": 400_000}
    figures |= {"latency_ratio": 0.8, "epochs": {"train": 4}, "seconds": {"train": 60.0}, "calibration_images": 2048}
    made = {"data": "CIFAR-10 (JPEG)", "device": "a CPU", "threads": 1, "date": "2026-01-02T03:04:05+00:00"}
    made |= {"commit": "abc", "versions": {"torch": "2"}, "network": "resnet20", "macs": 0.35, "distilled": False}
    return figures | made | {"method": method, "seed": 0, "held_out_accuracy": held, "test_accuracy": test} | changes


def written(table: ModuleType, root: Path, cells: list[Figures]) -> str:
    folder = root / "docs" / "results" / "accuracy"
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(cells):
        (folder / f"{number}.json").write_text(json.dumps(one))
    page = root / "docs" / "results.md"
    page.write_text(PAGE)
    assert table.main(["--root", str(root)]) == 0
    return page.read_text()


def test_tables_give_mean_deviation_and_number(table: ModuleType, tmp_path: Path) -> None:
    rate = {"network": "resnet20", "chosen": 0.05, "held_out_accuracy": {"0.02": 0.8, "0.05": 0.81}}
    cells = [cell("dense", 0.88, macs=None), rate, cell("A", 0.85), cell("A", 0.87, seed=1)]
    text = written(table, tmp_path, [*cells, cell("l1_norm", 0.80), cell("A", 0.875, distilled=True)])
    assert "| A: channel sparsity | not run | – | 86.00 ± 1.41 (2) | −2.00 | not run | – |" in text
    assert "| l1_norm | not run | – | 80.00 (1) | −8.00 | not run | – |" in text
    assert "| A: channel sparsity | not run | – | 87.50 (1) | −0.50 | not run | – |" in text  # with distillation
    assert "| A: channel sparsity | not run | 20.00 ± 0.00 (2) | not run |" in text
    assert "| A: channel sparsity | 0.35 | 0.349 | 90.0 k | 400.0 kB | 0.80 | 4 train | 1 min 0 s |" in text
    assert "learning rate of all fine-tunes: 0.05 (l1_norm as removed, held out: 0.02: 80.00 %, 0.05: 81.00 %)" in text
    assert "Dense network: 88.00 % test, 90.00 % held out" in text and "## mobilenetv2_half\n\nNot run." in text
    page = tmp_path / "docs" / "results.md"
    assert table.main(["--check", "--root", str(tmp_path)]) == 0
    page.write_text(text.replace("80.00 (1)", "90.00 (1)"))
    assert table.main(["--check", "--root", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("theirs", "met"),
    [((0.80, 0.81), "✓"), ((0.845, 0.86), "✗"), ((0.88, 0.88), "✗"), ((0.80,), "–")],
    ids=["above", "within one deviation", "below", "one seed"],
)
def test_goals_are_judged_by_the_figures(
    table: ModuleType, tmp_path: Path, theirs: tuple[float, ...], met: str
) -> None:
    cells = [cell("dense", 0.88, macs=None), cell("A", 0.855), cell("A", 0.865, seed=1), cell("B", 0.90)]
    cells += [cell("tp_magnitude", test, seed=seed) for seed, test in enumerate(theirs)]
    text = written(table, tmp_path, [*cells, cell("tp_group", 0.5)])
    line, refit = (line for line in text.splitlines() if line.startswith("| table 3, 0.35"))
    assert "MACs: refit error above" in refit and refit.endswith("| not run | – |")
    assert line.endswith(f" {met} |") and "A: channel sparsity 86.00" in line
    assert "| table 3, 0.5 of the MACs: the best of A and B above Torch-Pruning | not run | – |" in text
    assert "| table 2, 0.35 of the MACs: within 10 points of dense | " in text
    text = written(table, tmp_path, [*cells, cell("tp_group", 0.5), cell("refit", 0.9), cell("refit-dynamic", 0.8)])
    line, refit = (line for line in text.splitlines() if line.startswith("| table 3, 0.35"))
    assert "A: channel sparsity 86.00" in line and "refit error, one-shot 90.00" in refit
    assert "83.00 %: −7.00 | ✓ |" in text


def test_the_ablation_and_failures_are_shown(table: ModuleType, tmp_path: Path) -> None:
    failed = {"network": "resnet20", "method": "B", "macs": 0.2, "seed": 1, "distilled": False, "failed": "X: y"}
    cells = [cell("dense", 0.88, macs=None), cell("A", 0.86, distilled=True), cell("A", 0.85), failed]
    cells += [cell("A-without-allocation", 0.84, distilled=True), cell("A-with-ema", 0.87, distilled=True)]
    text = written(table, tmp_path, cells)
    assert "A: channel sparsity at 0.35 of the MACs, with distillation." in text
    assert "| as it is | 83.00 (1) | 86.00 (1) | −2.00 |" in text
    assert "| without allocation | 83.00 (1) | 84.00 (1) | −4.00 |" in text
    assert "| with ema | 83.00 (1) | 87.00 (1) | −1.00 |" in text
    assert "| without distillation | 83.00 (1) | 85.00 (1) | −3.00 |" in text
    assert "- B at 0.2, seed 1: X: y" in text


def test_the_page_is_what_the_figures_give(table: ModuleType) -> None:
    assert table.main(["--check"]) == 0


def test_a_file_of_something_else_is_refused(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "docs" / "results" / "accuracy"
    folder.mkdir(parents=True)
    (tmp_path / "docs" / "results.md").write_text(PAGE)
    (folder / "a.json").write_text("{}")
    assert table.main(["--root", str(tmp_path)]) == 2
    assert "holds what the benchmark does not write" in capsys.readouterr().err
    (folder / "a.json").write_text("{")
    assert table.main(["--root", str(tmp_path)]) == 2
