"""What outlives a sweep's folder, and cells whose data set is not here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import FileFormatError, RunError
from prunus.sweep import load_sweep, run_sweep
from prunus.sweep import run as running
from prunus.sweep.cells import SweepFolder, dense_job, kept_files
from prunus.sweep.keeping import keep
from prunus.sweep.results import row_of

ROOT = Path(__file__).resolve().parents[2]
BASE = "{model: resnet8, data: digits, epochs: 1, finetune_epochs: 0, recover: none, threads: 1, device: cpu}"


def written(folder: Path, grid: str, more: str = "") -> Path:
    path = folder / "sweep.yaml"
    path.write_text(f"base: {BASE}\ngrid: {grid}\nkeep: {folder / 'kept'}\nout: {folder / 'out'}\n{more}")
    return path


def carry_out(file: Path) -> tuple[list[Any], list[tuple[str, str]]]:
    """Run a sweep; return its rows, and what was told of which job."""
    told: list[tuple[str, str]] = []
    rows = run_sweep(load_sweep(file), lambda what, job, state: told.append((what, job.kind)))
    return rows, told


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of one cell and what is kept of it."""
    folder = tmp_path_factory.mktemp("sweep")
    rows, _ = carry_out(written(folder, "{macs: [0.6]}"))
    assert [row.status for row in rows] == ["done"]
    return folder


@pytest.fixture
def moved(swept: Path, tmp_path: Path) -> Path:
    """What is kept, on another machine."""
    shutil.copytree(swept / "kept", tmp_path / "kept")
    return tmp_path


def test_what_is_kept_is_small_and_says_everything(swept: Path) -> None:
    (cell,) = load_sweep(swept / "sweep.yaml").cells
    (name,) = kept_files(cell)
    kept = json.loads((swept / "kept" / name).read_text())
    assert kept["config"]["macs"] == 0.6 and kept["config"]["epochs"] == 1
    assert kept["summary"]["pruned"]["macs"] <= 0.6 * kept["summary"]["dense"]["macs"]
    assert kept["row"]["test_accuracy"] == kept["summary"]["pruned"]["test_accuracy"]
    assert kept["seconds"]["dense"] > 0 and kept["search"] == []
    assert str(swept) not in json.dumps(kept), "a path of this machine"
    dense = swept / "out" / "dense" / str(cell.needs) / "dense.safetensors"
    assert (swept / "kept" / "dense" / f"{cell.needs}.safetensors").read_bytes() == dense.read_bytes()


def test_a_search_in_training_is_kept_epoch_by_epoch(moved: Path) -> None:
    rows, _ = carry_out(written(moved, "{macs: [0.6], method: [layer-fusion], search_epochs: [2], remove_after: [1]}"))
    assert [row.status for row in rows] == ["done"]
    (cell,) = load_sweep(moved / "sweep.yaml").cells
    kept = json.loads((moved / "kept" / kept_files(cell)[0]).read_text())
    assert [epoch["epoch"] for epoch in kept["search"]] == [1, 2]
    assert kept["search"][1]["kept_channels"] < kept["search"][1]["channels"]
    assert kept["search"][1]["macs"] < kept["summary"]["dense"]["macs"]
    assert kept["seconds"]["search"] > 0


def test_cells_that_are_kept_are_done_and_others_start_from_the_kept_dense_network(moved: Path) -> None:
    rows, told = carry_out(written(moved, "{macs: [0.6, 0.5]}"))
    assert [row.status for row in rows] == ["done", "done"]
    assert told == [("there", "cell"), ("started", "cell"), ("done", "cell")], "the dense network was trained again"
    assert rows[0].run is None and rows[0].test_accuracy is not None and rows[0].settings == {"macs": 0.6}
    cells = load_sweep(moved / "sweep.yaml").cells
    (dense,) = (moved / "kept" / "dense").glob("*.safetensors")
    assert rows[1].run is not None
    assert (Path(rows[1].run) / "dense.safetensors").read_bytes() == dense.read_bytes()
    assert (moved / "kept" / f"{cells[1].name}.json").is_file()
    results = json.loads((moved / "out" / "sweep.json").read_text())
    assert results["complete"] is True


def test_half_of_a_kept_dense_network_is_none(moved: Path) -> None:
    (cell,) = load_sweep(written(moved, "{macs: [0.6]}")).cells
    folder = SweepFolder(moved / "out", moved / "kept")
    assert folder.is_done(dense_job(cell))
    (metrics,) = (moved / "kept" / "dense").glob("*.jsonl")
    metrics.unlink()
    assert not folder.is_done(dense_job(cell))


@pytest.mark.parametrize("content", ["{}", "[]", '{"row": {"name": 1}}', "{"])
def test_a_strange_file_is_one_clear_error(moved: Path, content: str) -> None:
    (cell,) = load_sweep(written(moved, "{macs: [0.6]}")).cells
    (name,) = kept_files(cell)
    (moved / "kept" / name).write_text(content)
    with pytest.raises(FileFormatError, match=str(moved / "kept" / name)):
        row_of(SweepFolder(moved / "out", moved / "kept"), cell)


def test_a_folder_that_cannot_be_made_is_one_clear_error_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot make .*kept to keep results in"):
        carry_out(written(tmp_path, "{macs: [0.6]}"))
    assert not (tmp_path / "out" / "states").exists()


def test_a_folder_that_went_away_is_one_clear_error(swept: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").write_text("in the way")
    (cell,) = load_sweep(swept / "sweep.yaml").cells
    for job in (cell, dense_job(cell)):
        with pytest.raises(RunError, match=r"cannot write .*gone"):
            keep(SweepFolder(swept / "out", tmp_path / "gone" / "file"), job)


def test_a_data_set_is_looked_for_once(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives are recognised by their checksum, which takes a while."""
    looked: list[str] = []
    monkeypatch.setattr(running, "find_data", lambda data, cache_dir: looked.append(data))
    rows, told = carry_out(written(moved, "{macs: [0.6, 0.5, 0.4]}", "skip_missing_data: true\n"))
    assert looked == ["digits"] and [what for what, _ in told] == ["there", "no data", "no data"]
    assert [row.status for row in rows] == ["done", "no data", "no data"]


def test_a_cell_without_its_data_set_is_left_out_and_says_so(moved: Path) -> None:
    file = written(moved, "{data: [digits, not_here.tar.xz], macs: [0.6]}", "skip_missing_data: true\n")
    command = [sys.executable, "-m", "prunus", "sweep", str(file), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "left out  data-not_here.tar.xz_macs-0.6" in result.stderr
    found = json.loads(result.stdout)
    assert [row["status"] for row in found["cells"]] == ["done", "no data"] and found["complete"] is False
    assert found["cells"][1]["error"] == ["the data set not_here.tar.xz is not here"]
