"""The commands that pages tell people to type are run: on tiny data, for an epoch, and else as they stand there.

What a process of its own can run alone (launchers, benchmarks, scripts of the checkout) is in test_long_commands.py.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import typer

import prunus
from tests.docs.desk import UNMARKED, is_long, skip_what_is_missing, typed, write_desk
from tests.docs.pages import Block, commands_of

# Installing is what .ci/run does; extras, scripts and flags are looked up by test_pages.py.
INSTALLING = r"python3 -m venv |(?:\S*/)?pip install |export PRUNUS_|\.venv/bin/python -m mkdocs |scripts/check$"


def is_run_here(line: str) -> bool:
    return line.startswith("prunus ") and not is_long(line)


BLOCKS = [block for block in UNMARKED if any(map(is_run_here, commands_of(block)))]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands take for granted, everything tiny, and a finished run."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PRUNUS_CACHE", str(folder / "cache"))
        write_desk(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_of_commands_runs(block: Block, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in commands_of(block) if is_run_here(line)]
    skip_what_is_missing(lines)
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    monkeypatch.setenv("PRUNUS_CACHE", str(desk / "cache"))
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    shutil.rmtree("runs", ignore_errors=True)
    made = {out for line in lines if line.startswith("prunus compress") for out in re.findall(r"--out (\S+)", line)}
    for run in {run for line in lines for run in re.findall(r"runs/[\w-]+", line)} - made:
        shutil.copytree("base", run)
    if "--network timm:resnet18" in block.code:
        write_pruned_resnet18(desk / "model.safetensors")
    for line in lines:
        typed(line)
    assert len(opened) == sum("--open" in line for line in lines)
    assert all(Path(out, "report.html").is_file() for out in made)


def write_pruned_resnet18(path: Path) -> None:
    import torch

    from prunus.models import find_network

    model = find_network("timm:resnet18").build()[0]
    pruned = prunus.prune(model, torch.randn(2, 3, 64, 64), budget=prunus.Budget(macs=0.5))
    prunus.save(pruned.model, path, plan=pruned.plan)


def test_every_other_command_installs_something() -> None:
    lines = [line for block in UNMARKED for line in commands_of(block) if not is_run_here(line) and not is_long(line)]
    assert len(lines) > 10
    for line in lines:
        assert re.match(INSTALLING, re.sub(r"^\S*/bin/prunus demo$", "scripts/check", line)), f"nothing runs {line}"
