"""docs/reproduce.md comes from what sweeps kept; the sweeps in reproduce/ can start."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunus.config import MAY_CHANGE, RunConfig
from prunus.sweep import load_sweep

ROOT = Path(__file__).resolve().parent.parent
SWEEP = """\
base: {data: digits, model: resnet8, method: channel-sparsity}
keep: results/NAME
grid:
  - {macs: [0.5, 1.0], seed: [0, 1]}
  - {macs: 0.5, reinitialize: true}
  - {macs: 0.5, finetune_epochs: 40}
"""
PAGE = "# Reproducing\n\n<!-- reproduce: begin -->\ntyped\n<!-- reproduce: end -->\nmore\n"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module: it has no ending, so that people type its name."""
    loader = SourceFileLoader("reproduce_table", str(ROOT / "scripts" / "reproduce_table"))
    spec = spec_from_loader("reproduce_table", loader)
    assert spec
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce_table", module)  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path, script: ModuleType) -> Path:
    """A checkout with four small sweeps, no cell of which is there."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "reproduce.md").write_text(PAGE)
    (tmp_path / "reproduce").mkdir()
    for name in script.TIERS:
        (tmp_path / "reproduce" / f"{name}.yaml").write_text(SWEEP.replace("NAME", name))
    return tmp_path


def kept(root: Path, number: int, test: float, dense: float = 0.9, search: Sequence[dict[str, int]] = ()) -> None:
    """Keep the cell of that number, as a sweep does."""
    cell = load_sweep(root / "reproduce" / "channel_sparsity_cpu.yaml").cells[number]
    side = {"params": 1000, "macs": 50_000, "size_bytes": 4000, "latency_ms": 1.0}
    int8 = {
        "val_accuracy": {"float32": 0.9, "rounded": 0.9},
        "delivered": "rounded",
        "size_bytes": 1500,
        "latency_ms": 0.5,
    }
    whole = {"params": 2000, "macs": 100_000, "size_bytes": 8000, "latency_ms": 1.5}
    summary: dict[str, Any] = {
        "data": "UCI digits",
        "model": "resnet8",
        "method": "channel-sparsity",
        "budget": cell.config.budgets,
        "date": "2026-11-29T01:00:00",
        "commit": "abc",
        "device": "a processor",
        "seed": cell.config.seed,
        "epochs": {"dense": 30, "search": 0, "finetune": 15},
        "dense": whole | {"test_accuracy": dense},
        "pruned": side | {"test_accuracy": test},
        "latency": {"dense": {"runtime": "ORT 1"}, "pruned": {"runtime": "ORT 1"}},
        "widths": [{"layer": "stem", "before": 16, "after": 8}, {"layer": "layer1.conv", "before": 16, "after": 4}],
        **({"int8": int8 | {"test_accuracy": test - 0.01}} if number < 2 else {}),
    }
    row = {"name": cell.name, "settings": {}, "status": "done", "attempts": 1, "seconds": 1.0}
    config = cell.config.model_dump(mode="json", exclude=set(MAY_CHANGE))
    file = root / "results" / "channel_sparsity_cpu" / f"{cell.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"row": row | {"held_out_accuracy": test + 0.01}, "config": config, "summary": summary, "search": search}
    file.write_text(json.dumps(kept))


def test_seeds_are_one_row_with_their_spread_each_against_its_own_dense_network(script: ModuleType, root: Path) -> None:
    kept(root, 0, 0.86, dense=0.90)
    kept(root, 1, 0.88, dense=0.91)
    kept(root, 4, 0.80)
    assert script.main(["--root", str(root), "--check"]) == 1
    assert script.main(["--root", str(root)]) == 0
    assert script.main(["--root", str(root), "--check"]) == 0
    text = (root / "docs" / "reproduce.md").read_text()
    assert "typed" not in text and text.endswith("<!-- reproduce: end -->\nmore\n")
    assert "channel_sparsity_cpu.yaml, cpu tier\n\n3 of 6 cells are there." in text
    assert "Latency in ORT 1. " in text
    assert "layer_fusion.yaml, gpu tier\n\n0 of 6 cells are there." in text
    rows = [line for line in text.splitlines() if line.startswith("| 0.5 of the MACs")]
    common = "0.500 | 1.0 k | 4.0 kB | 1.50× as fast"
    int8 = "86.00 ± 1.41, 1.5 kB, 3.00× as fast"
    method = "A: λ = 1, weight"
    assert rows == [
        f"| 0.5 of the MACs | {method} | 2 | 87.00 ± 1.41 | −3.50 ± 0.71 | 88.00 ± 1.41 | {common} | {int8} | 15 |",
        f"| 0.5 of the MACs | Scratch-E, structure of {method} | 1 | 80.00 | −10.00 | 81.00 | {common} | – | 15 |",
    ]


def test_longer_training_is_another_row(script: ModuleType, root: Path) -> None:
    kept(root, 0, 0.86)
    kept(root, 5, 0.89)
    assert script.main(["--root", str(root)]) == 0
    text = (root / "docs" / "reproduce.md").read_text()
    method = "A: λ = 1, weight"
    assert f"| 0.5 of the MACs | {method} | 1 | 86.00 |" in text
    assert f"| 0.5 of the MACs | {method}, fine-tuned for 40 epochs | 1 | 89.00 |" in text


def test_plots_show_the_cells_that_are_there(script: ModuleType, root: Path) -> None:
    epochs = [
        {"epoch": number, "channels": 100, "kept_channels": 100 - 10 * number, "returned_channels": number}
        for number in range(4)
    ]
    kept(root, 0, 0.86, search=epochs)
    kept(root, 1, 0.88)
    assert script.main(["--root", str(root)]) == 0
    folder = root / "docs" / "results" / "reproduce"
    drawn = {path.name.removeprefix("channel-sparsity-cpu-resnet8-uci-digits-"): path for path in folder.iterdir()}
    assert drawn.keys() == {"accuracy.svg", "widths.svg", "masks.svg"}
    page = (root / "docs" / "reproduce.md").read_text()
    assert all(f"](results/reproduce/{path.name})" in page for path in drawn.values())
    texts = {name: path.read_text() for name, path in drawn.items()}
    assert "A: λ = 1, weight" in texts["accuracy.svg"] and "dense" in texts["accuracy.svg"]
    assert "layer1.conv" in texts["widths.svg"]
    assert "channels that came back" in texts["masks.svg"]
    # The same cells give the same files, byte for byte; one that is gone is seen.
    assert script.main(["--root", str(root)]) == 0
    assert {name: path.read_text() for name, path in drawn.items()} == texts
    drawn["masks.svg"].rename(folder / "other.svg")
    assert script.main(["--root", str(root), "--check"]) == 1
    assert script.main(["--root", str(root)]) == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in drawn.values()}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"macs": 1.0}, "dense, trained on"),
        ({"method": "channel-sparsity", "lam": 0, "degree": "activation"}, "A: λ = 0, activation"),
        ({}, "refit_error"),
        ({"criterion": "l1_norm", "distill": 0.5}, "l1_norm, distilled 0.5"),
        ({"method": "layer-fusion"}, "B: delivered energy"),
        (
            {"method": "layer-fusion", "criterion": "fused_conv_bn", "constant": True},
            "B: fused norm with the constant part",
        ),
        ({"method": "layer-fusion", "criterion": "l2_norm", "from_scratch": True}, "B: l2_norm, from scratch"),
        ({"method": "layer-fusion", "allocation": "local"}, "B: delivered energy, uniform widths"),
    ],
)
def test_rows_are_named_after_what_tells_them_apart(script: ModuleType, changes: dict[str, Any], name: str) -> None:
    config = RunConfig.model_validate({"model": "resnet8", "data": "digits", "macs": 0.5} | changes)
    assert script.method_of(config) == name


def test_a_file_that_is_no_cell_is_one_clear_error(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(root, 0, 0.86)
    (file,) = (root / "results").rglob("*.json")
    file.write_text("{}")
    assert script.main(["--root", str(root)]) == 2
    assert f"{file} is not the result of a cell" in capsys.readouterr().err
    assert (root / "docs" / "reproduce.md").read_text() == PAGE


def test_the_page_says_what_is_kept_here(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0


def test_no_two_rows_of_a_sweep_have_the_same_name(script: ModuleType) -> None:
    for name, tier in script.TIERS.items():
        sweep = load_sweep(ROOT / "reproduce" / f"{name}.yaml")
        cells = sweep.cells
        config = [cell.config for cell in cells]
        shortest = {c.model: min(d.finetune_epochs for d in config if d.model == c.model) for c in config}
        rows = {(c.model, c.data, c.seed, str(c.budgets), script.named(c, shortest[c.model])) for c in config}
        assert len(rows) == len(cells), name
        assert sweep.keep == Path("results") / tier  # the sweeps of a tier share their dense networks
