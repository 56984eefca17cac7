"""What the pages tell people to type works: Python and cheap commands run, all commands are parsed."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import prunus
from prunus.cli import app
from prunus.config import load_config
from tests.docs.commands import check_command, check_mention
from tests.docs.pages import MARKS, ROOT, Block, blocks_of, commands_of, inline_of, pages

ELSEWHERE = {  # run, block by block, by tests that also look at what comes of it
    "README.md": "tests/test_readme.py",
    "CONTRIBUTING.md": "tests/test_readme.py",
    "docs/custom_ops.md": "tests/graph/test_own_rules.py",
    "docs/sweep.md": "tests/sweep/test_spec.py",
}
SLOW = {
    "docs/howto/exporter.md",
    "docs/deployment.md",
    "docs/tutorials/multi_gpu.md",
    "docs/tutorials/raspberry_pi.md",
    "docs/tutorials/timm_model.md",
}

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
            if "run" not in block.marks or "prunus" in line:  # what else is run may be a file of the page
                check_command(line)


@pytest.mark.parametrize("name", PAGES)
def test_running_text_names_only_commands_and_flags_that_are_there(name: str) -> None:
    for code in inline_of(PAGES[name]):
        check_mention(code)


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
            run_command(line, block)


def run_command(line: str, block: Block) -> None:
    """Run a command of Prunus in this process, and a launcher or a script in one of its own."""
    program, *words = shlex.split(line)
    if program == "prunus":
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{block.where}: {line}\n{result.output}"
        return
    python = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[program]
    alone = {"PET_STANDALONE": "1"}  # a port of its own, whatever else is launched on the machine meanwhile
    environment = os.environ | alone | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *python, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{block.where}: {line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(("document", "test"), ELSEWHERE.items())
def test_pages_that_are_run_elsewhere_are(document: str, test: str) -> None:
    assert Path(document).name in (ROOT / test).read_text("utf-8")


def test_every_public_name_is_in_the_reference() -> None:
    pages_of_it = (ROOT / "docs" / "reference").glob("*.md")
    shown = {
        line.split()[1] for page in pages_of_it for line in page.read_text("utf-8").splitlines() if line[:3] == ":::"
    }
    missing = [name for name in set(prunus.__all__) - {"CRITERIA", "MODELS", "__version__"} if not named(name, shown)]
    assert missing == []
    assert {name for name in prunus.CRITERIA if f"prunus.criteria.{name}.{name}" not in shown} == set()


def named(name: str, shown: set[str]) -> bool:
    """Whether the thing that is called `name` is among those shown, by the module that it is from."""
    found = getattr(prunus, name)
    return f"{found.__module__}.{found.__qualname__}" in shown


def test_the_papers_are_never_named_without_the_word_reconstruction() -> None:
    for page in pages():
        text = page.read_text("utf-8")
        if re.search(r"siprocess\.2019|issn1003-6059|\bLu (?:and|&) Yuan\b|\bBao\b", text):
            assert "reconstruction" in text.lower(), page
