"""What the pages tell people to type works: Python and cheap commands run, all other commands are parsed."""

from __future__ import annotations

import ast
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from prunus.cli import app
from prunus.config import load_config
from tests.docs.commands import check_command
from tests.docs.pages import MARKS, ROOT, Block, blocks_of, commands_of, pages

ELSEWHERE = {  # run, block by block, by tests that also look at what comes of it
    "README.md": "tests/test_readme.py",
    "CONTRIBUTING.md": "tests/test_readme.py",
    "docs/custom_ops.md": "tests/graph/test_own_rules.py",
    "docs/sweep.md": "tests/sweep/test_spec.py",
}
SLOW = {"docs/deployment.md"}

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
SHELL = [block for page in pages() for block in blocks_of(page) if block.language == "sh"]
SWEEP = next(block for block in blocks_of(PAGES["docs/sweep.md"]) if block.language == "yaml")
RUN = {
    name: [block for block in blocks_of(page) if block.language != "sh" or "run" in block.marks]
    for name, page in PAGES.items()
    if name not in ELSEWHERE
}


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_a_page_is_one_that_is_tested(name: str) -> None:
    for block in blocks_of(PAGES[name]):
        assert set(block.marks) <= MARKS, f"{block.where}: {set(block.marks) - MARKS} mean nothing"
        assert block.language in ("python", "sh", "yaml") or "file" in block.marks, f"{block.where}: {block.language}"
        if "not run" in block.marks:
            assert len(block.marks["not run"]) > 10, f"{block.where}: why is it not run?"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.where)
def test_commands_parse(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text("epochs: 3\n")
    (tmp_path / "sweep.yaml").write_text(SWEEP.code)
    monkeypatch.chdir(tmp_path)
    if "not run" not in block.marks:
        for line in commands_of(block):
            check_command(line)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RUN if RUN[name]]
)
def test_a_page_runs_from_the_top_down(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {"__name__": "page"}
    for block in RUN[name]:
        missing = [need for need in block.marks.get("needs", "").replace(",", " ").split() if not is_there(need)]
        if missing:
            pytest.skip(f"{block.where} needs {', '.join(missing)}")
        run_block(block, names)


def is_there(need: str) -> bool:
    return torch.cuda.is_available() if need == "cuda" else find_spec(need) is not None


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Do what the reader would: run Python and commands, write files."""
    if "first" in block.marks:
        exec(compile(block.marks["first"], f"{block.where} (first)", "exec", dont_inherit=True), names)
    if "file" in block.marks:
        Path(block.marks["file"]).write_text(block.code, "utf-8")
    elif block.language == "python":
        code = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
        if "not run" in block.marks:
            ast.parse(code)
        else:
            exec(compile(code, str(block.page), "exec", dont_inherit=True), names)
    elif block.language == "yaml":
        Path("block.yaml").write_text(block.code, "utf-8")
        load_config(Path("block.yaml"), {})
        yaml.safe_load(block.code)
    else:
        for line in commands_of(block):
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{block.where}: {line}\n{result.output}"


@pytest.mark.parametrize(("document", "test"), ELSEWHERE.items())
def test_pages_that_are_run_elsewhere_are(document: str, test: str) -> None:
    assert Path(document).name in (ROOT / test).read_text("utf-8")
