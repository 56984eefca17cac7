"""The examples and the notebook run on digits, and what they print is a network that still tells digits apart."""

from __future__ import annotations

import json
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from prunus.models import find_network
from tests.docs.pages import ROOT, pages

EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
NEEDS = {"timm_model": ("timm",), "deploy_onnx": ("onnxruntime", "onnxscript")}
NOTEBOOK = ROOT / "notebooks" / "quick_start.ipynb"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [need for need in NEEDS.get(name, ()) if find_spec(need) is None]
    if missing:
        pytest.skip(f"{EXAMPLES[name].name} needs {', '.join(missing)}")
    if "timm" in NEEDS.get(name, ()):
        find_network("timm:test_resnet")  # makes torchvision importable beside any build of torch
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES[name]), run_name="__main__")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    figures = [float(figure) for figure in re.findall(r"\d\.\d{3}", last)]
    assert figures, last
    assert figures[-1] > 0.9, last


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text("utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec", dont_inherit=True), names)
    assert names["result"].verification.passed
    assert names["accuracy"](names["again"]) > 0.9
    assert "pruned: " in capsys.readouterr().out


def test_the_notebook_is_whole_and_holds_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_every_example_that_a_page_names_is_there_and_every_example_is_named() -> None:
    text = "\n".join(page.read_text("utf-8") for page in pages())
    named = set(re.findall(r"examples/(\w+)\.py", text))
    assert named == set(EXAMPLES)
    assert "notebooks/quick_start.ipynb" in text
