"""The README and the guide say what is so, and their Python runs; tests/docs looks at the commands of all pages."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

import prunus
from tests.docs.pages import blocks_of

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def python_of(document: str) -> list[str]:
    return [block.code for block in blocks_of(ROOT / document) if block.language == "python"]


PYTHON = python_of("README.md")


def test_the_readme_shows_both_commands_and_both_methods() -> None:
    assert "prunus demo" in README
    assert README.count("reconstruction") >= 2
    assert "doi:10.1109/siprocess.2019.8868491" in README
    assert "doi:10.16451/j.cnki.issn1003-6059.201911010" in README


def run_python(code: str, folder: Path) -> None:
    """Run the code as a script in this process: importing torch anew would take longer than all the rest."""
    (folder / "block.py").write_text(code)
    runpy.run_path(str(folder / "block.py"))


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_the_python_of_the_readme_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(PYTHON[number], tmp_path)
    assert "passed=True" in capsys.readouterr().out


def test_the_criterion_of_the_guide_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = python_of("CONTRIBUTING.md")
    model = "\nimport torch\n\nimport prunus\n\nmodel, x = prunus.build_model('resnet8'), torch.randn(1, 3, 8, 8)\n"
    use = "print(prunus.prune(model, x, criterion=largest_weight, pruning_ratio=0.5).verification.passed)"
    run_python(block + model + use, tmp_path)
    assert capsys.readouterr().out == "True\n"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_paths_that_documents_name_are_there(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    named = re.findall(r"`((?:src|tests|scripts|docs|\.ci)/[\w./]*)`", text) + re.findall(r"\]\(([\w./]+)\)", text)
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []


def test_ci_runs_the_commands_of_the_readme(tmp_path: Path) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    function = re.search(r"^readme_command\(\) \{.*?^\}$", script, flags=re.DOTALL | re.MULTILINE)
    assert function
    for name in ("demo", "test"):
        found = subprocess.run(
            ["bash", "-c", f"{function[0]}\nreadme_command {name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert found.strip() in README
        assert found.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert "for name in demo test; do" in script


@pytest.mark.parametrize("script", [".ci/run", "scripts/check"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert (ROOT / script).stat().st_mode & 0o111


def test_version_licence_and_changelog_agree() -> None:
    assert re.search(
        rf"^## \[{re.escape(prunus.__version__)}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT"
    assert "Prunus contributors" in (ROOT / "LICENSE").read_text()
    assert project["scripts"] == {"prunus": "prunus.cli:main"}
