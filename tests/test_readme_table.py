"""The README's table comes from run folders, and only from such as bear it out."""

from __future__ import annotations

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from tests.report.sample_run import write_run

ROOT = Path(__file__).resolve().parent.parent
README = "# Title\n\n<!-- results: begin -->\n| typed | 99.9 |\n<!-- results: end -->\n\nmore\n"


def script() -> ModuleType:
    """The script as a module: it has no ending, so that people type its name."""
    loader = SourceFileLoader("readme_table", str(ROOT / "scripts" / "readme_table"))
    spec = spec_from_loader("readme_table", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


readme_table = script().main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def finished_run(folder: Path) -> Path:
    run = write_run(folder)
    summary = json.loads((run / "summary.json").read_text())
    (run / "model.safetensors").write_bytes(b"x" * summary["pruned"]["size_bytes"])
    (run / "dense.safetensors").write_bytes(b"x" * summary["dense"]["size_bytes"])
    return run


def test_the_table_of_this_readme_is_what_its_runs_say() -> None:
    assert readme_table(["--check"]) == 0


def test_a_run_becomes_a_row_and_typed_rows_go(root: Path) -> None:
    assert readme_table(["--root", str(root), str(finished_run(root / "runs" / "a"))]) == 0
    text = (root / "README.md").read_text()
    assert "99.9" not in text
    assert text.startswith("# Title\n\n<!-- results: begin -->\n| data set |") and text.endswith(
        "<!-- results: end -->\n\nmore\n"
    )
    (row,) = (line for line in text.splitlines() if "resnet20" in line)
    assert row == (
        "| CIFAR-10 (JPEG) | resnet20 | channel-sparsity | size 0.64MB | 87.12 → 86.64 | −0.48 | 272.5 k → 154.3 k "
        "| 40.8 M → 23.5 M | 1.11 MB → 639.9 kB | 2.35 ms → 1.62 ms | 12 dense + 6 finetune "
        "| 0 | cpu | 2026-11-22 | 0123abc |"
    )
    assert readme_table(["--root", str(root), "--check"]) == 0


def test_a_typed_figure_is_found(root: Path) -> None:
    readme_table(["--root", str(root), str(finished_run(root / "runs" / "a"))])
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("86.64", "87.64"))
    assert readme_table(["--root", str(root), "--check"]) == 1
    assert "87.64" in readme.read_text()
    assert readme_table(["--root", str(root)]) == 0
    assert "86.64" in readme.read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "dense.safetensors"])
def test_a_summary_that_its_files_do_not_bear_out_is_refused(
    root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(root / "runs" / "a")
    (run / name).write_bytes(b"short")
    assert readme_table(["--root", str(root), str(run)]) == 2
    said = capsys.readouterr().err
    assert "is refused" in said and name in said
    assert (root / "README.md").read_text() == README


def test_an_unverified_run_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(root / "runs" / "a")
    (run / "verification.json").write_text('{"passed": false}')
    assert readme_table(["--root", str(root), str(run)]) == 2
    assert "verification did not pass" in capsys.readouterr().err


def test_a_readme_without_the_markers_is_left_alone(root: Path) -> None:
    (root / "README.md").write_text("nothing\n")
    assert readme_table(["--root", str(root)]) == 2
    assert (root / "README.md").read_text() == "nothing\n"
