"""The coverage page comes from rows, and rows come from checks that were made; a run that stops goes on."""

from __future__ import annotations

import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from prunus.checking import CheckRow, FrozenChannels

ROOT = Path(__file__).resolve().parent.parent


def script() -> ModuleType:
    """The script as a module: it has no ending, so that people type its name."""
    loader = SourceFileLoader("coverage_table", str(ROOT / "scripts" / "coverage_table"))
    spec = spec_from_loader("coverage_table", loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules["coverage_table"] = module  # its data classes look their annotations up there
    loader.exec_module(module)
    return module


coverage = script()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "coverage_models.txt").write_text("a  # first\nlib:b\nc\n")
    return tmp_path


class Checks:
    """Stands for `check_model`: notes what it was asked, and fails what it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, spec: str, ratio: float) -> CheckRow:
        self.asked.append(spec)
        if spec in self.failing:
            return CheckRow(spec=spec, verdict="failed", reason="IndexError: a | b", ratio=ratio)
        frozen = [
            FrozenChannels(
                tensor="fc.weight", count=1, channels=9, op="", where="", reason="it is an output of the model"
            ),
            FrozenChannels(tensor="x", count=3, channels=8, op="aten.cumsum", where="n.py:3", reason="adds up"),
            *(FrozenChannels(tensor=f"y{i}", count=1, channels=1, op="", where="", reason="z" * 200) for i in range(3)),
        ]
        return CheckRow(
            spec=spec,
            verdict="exact",
            ratio=ratio,
            params_before=1000,
            params_after=251,
            macs_before=100,
            macs_after=50,
            max_relative_error=2e-16,
            mixing=("aten.native_layer_norm",),
            seconds={"load": 9.0, "trace": 0.5, "plan": 0.25},
            frozen=tuple(frozen) if spec == "lib:b" else (),
        )


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    made = Checks()
    monkeypatch.setattr(coverage, "check_model", made)
    return made


def run(root: Path, *arguments: str) -> int:
    code: int = coverage.main(["--root", str(root), *arguments])
    return code


def page(root: Path) -> str:
    return (root / "docs" / "coverage.md").read_text()


def rows(root: Path) -> list[str]:
    return (root / "docs" / "results" / "coverage.jsonl").read_text().splitlines()


@pytest.mark.skipif(not (ROOT / "docs" / "coverage.md").exists(), reason="the page was not made yet")
def test_the_page_is_what_its_rows_say() -> None:
    assert coverage.main(["--check"]) == 0


def test_the_page_has_a_line_a_network_and_the_totals(root: Path, checks: Checks) -> None:
    checks.failing = {"c"}
    assert run(root) == 0
    text = page(root)
    a, b, c = (line for line in text.splitlines() if line.startswith("| `"))
    assert a == "| `a` | exact | 25.1 | 50.0 | 2e-16 | native_layer_norm | 0.75 | – |"
    first = "8 of x and 2 more: adds up (aten.cumsum, n.py:3)"
    assert f"| {first}; 1 of y0: {'z' * 150}…; 2 more reasons |" in b
    assert c == "| `c` | failed | – | – | – | – | – | IndexError: a / b |"
    assert "**3 networks:** 2 exact, 0 approximate, 1 failed. 2 are left with at most 40% of their parameters; " in text
    assert "the median is 25.1%. Made with prunus " in text and " · torch 2." in text
    assert run(root, "--check") == 0


def test_of_a_network_that_is_left_large_the_largest_tensor_is_named() -> None:
    output = FrozenChannels(tensor="fc.weight", count=1, channels=9, op="", where="", reason="an output of the model")
    row = CheckRow(
        spec="a",
        verdict="exact",
        ratio=0.5,
        params_before=1000,
        params_after=500,
        largest="fc.weight",
        largest_params=300,
        frozen=(output,),
    )
    assert coverage.cells(row)[-1] == "60% of what is left is fc.weight, which gives the outputs"
    other = row.model_copy(update={"largest": "x"})
    assert coverage.cells(other)[-1] == "60% of what is left is x"
    assert coverage.cells(row.model_copy(update={"params_after": 400}))[-1] == "–"


def test_only_what_is_missing_failed_or_named_is_checked(root: Path, checks: Checks) -> None:
    checks.failing = {"c"}
    run(root)
    assert checks.asked == ["a", "lib:b", "c"]
    for arguments, asked in (
        ([], []),
        (["--failed"], ["c"]),
        (["--again", "lib:b"], ["lib:b"]),
        (["--page"], []),
        (["--fresh"], ["a", "lib:b", "c"]),
        (["--ratio", "0.3"], ["a", "lib:b", "c"]),
    ):
        checks.asked.clear()
        assert run(root, *arguments) == 0
        assert checks.asked == asked, arguments
    assert [json.loads(line)["row"]["ratio"] for line in rows(root)] == [0.3, 0.3, 0.3]


def test_a_run_that_stops_goes_on(root: Path, checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(spec: str, ratio: float) -> CheckRow:
        if spec == "c":
            raise KeyboardInterrupt
        return checks(spec, ratio)

    monkeypatch.setattr(coverage, "check_model", stop)
    assert run(root) == 130
    with (root / "docs" / "results" / "coverage.jsonl").open("a") as file:
        file.write('{"row": {"spec": "c", "verd')  # a kill in the middle of a line
    monkeypatch.setattr(coverage, "check_model", checks)
    checks.asked.clear()
    assert run(root, "--page") == 0 and "**2 networks of 3:**" in page(root)
    assert run(root) == 0
    assert checks.asked == ["c"]
    assert [json.loads(line)["row"]["spec"] for line in rows(root)] == ["a", "lib:b", "c"]


def test_a_network_that_left_the_list_leaves_the_page(root: Path, checks: Checks) -> None:
    run(root)
    (root / "tests" / "coverage_models.txt").write_text("c\na\n")
    assert run(root) == 0
    assert [json.loads(line)["row"]["spec"] for line in rows(root)] == ["c", "a"]


def test_a_typed_figure_is_found(root: Path, checks: Checks, capsys: pytest.CaptureFixture[str]) -> None:
    run(root)
    path = root / "docs" / "coverage.md"
    path.write_text(page(root).replace("25.1", "24.1"))
    assert run(root, "--check") == 1
    assert "docs/coverage.md differs from the rows" in capsys.readouterr().err
    assert run(root, "--page") == 0 and "24.1" not in page(root)


def test_what_is_wrong_is_said(root: Path, checks: Checks, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--page") == 2
    assert "there are no rows yet" in capsys.readouterr().err
    assert run(root, "--again", "d") == 2
    assert "not in tests/coverage_models.txt: d" in capsys.readouterr().err
    run(root)
    file = root / "docs" / "results" / "coverage.jsonl"
    file.write_text("{}\n" + file.read_text())
    assert run(root, "--page") == 2
    assert "coverage.jsonl, line 1 is not a row" in capsys.readouterr().err
