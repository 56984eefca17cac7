"""Commands that pages tell people to type, looked at as closely as can be without running them."""

from __future__ import annotations

import functools
import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from prunus.cli import app
from prunus.cli.compress import app as compress
from tests.docs.pages import ROOT

LAUNCHERS = ("torchrun", "accelerate")
PYTHONS = ("python", "python3")


def check_command(line: str) -> None:
    """Fail where a command, a flag, a value, an extra or a script of a command line is not there."""
    words = shlex.split(line, comments=True)
    while words and (variable := re.fullmatch(r"(?:export|([A-Z_]+)=.*)", words[0])):
        check_variable(variable[1])
        words = words[1:]
    if not words:
        return
    program = re.sub(r"^[\w./]*bin/", "", words[0])  # of whatever environment
    if program == "prunus":
        check_prunus(words[1:])
    elif "prunus" in words and (program in LAUNCHERS or words[1:3] == ["-m", "prunus"]):
        check_prunus(words[words.index("prunus") + 1 :])
    elif program == "pip" or words[1:3] == ["-m", "pip"]:
        check_pip(words)
    elif program in PYTHONS:
        check_python(words[1:])
    elif (ROOT / words[0]).is_file():
        check_script(ROOT / words[0], words[1:])
    else:
        assert line.startswith("source .venv/bin/activate"), f"no test knows the program of: {line}"


def check_prunus(words: Sequence[str]) -> None:
    """Parse a command line of Prunus with its flags and values; where settings can be judged, they are."""
    words = [str(ROOT / word) if word.startswith("reproduce/") else word for word in words]  # typed in a checkout
    judging = {"compress": "--print-config", "sweep": "--dry-run"}.get(words[0])
    if judging:
        result = CliRunner().invoke(app, [*(word for word in words if word != judging), judging])
        assert result.exit_code == 0, result.output
        return
    command = get_command(app).commands.get(words[0])  # type: ignore[attr-defined]
    assert command is not None, f"there is no command {words[0]}"
    if "--help" not in words:
        command.make_context(words[0], list(words[1:]))


def check_mention(code: str) -> None:
    """Fail where running text names a command, a flag or an extra that is not there; values may be left open."""
    words = code.split()
    if words[0] == "prunus" and len(words) > 1 and words[1].isalpha() and words[1].islower():
        assert words[1] in all_flags(), f"there is no command {words[1]}"
        unknown = [word for word in words if word.startswith("--") and word not in all_flags()[words[1]] | {"--help"}]
        assert unknown == [], f"prunus {words[1]} has no {', '.join(unknown)}"
    elif words[0] in ("pip", ".venv/bin/pip"):
        check_pip(shlex.split(code))
    elif re.fullmatch(r"--[a-z][\w-]*", words[0]):
        known = set().union(*all_flags().values())
        assert words[0] in known or words[0] in script_text(), f"nothing has a flag {words[0]}"


@functools.cache
def all_flags() -> dict[str, set[str]]:
    """Return the flags of every command of Prunus, and of the program itself under \"\"."""
    group = get_command(app)
    commands = {**group.commands, "compress": get_command(compress), "": group}  # type: ignore[attr-defined]
    return {
        name: {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        for name, command in commands.items()
    }


@functools.cache
def script_text() -> str:
    """Return the code of all scripts, in which their flags stand."""
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").iterdir()]
    return "\n".join(script.read_text("utf-8") for script in scripts if script.is_file())


def check_variable(name: str | None) -> None:
    """Find an environment variable of Prunus in its code."""
    if name and name.startswith("PRUNUS_"):
        assert any(name in file.read_text("utf-8") for file in (ROOT / "src").rglob("*.py")), f"nothing reads {name}"


def check_pip(words: Sequence[str]) -> None:
    """Look up the extras of Prunus that a line installs."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert "install" in words, words
    for named in re.findall(r"(?:prunus|\.)\[([\w,]+)\]", " ".join(words)):
        missing = set(named.split(",")) - set(extras)
        assert not missing, f"there is no extra {', '.join(sorted(missing))}"


def check_python(words: Sequence[str]) -> None:
    """Look up a script and its flags; modules are those that come with Python or with the tests."""
    if words[0] == "-m":
        assert words[1] in ("venv", "pytest", "mkdocs"), words
        return
    check_script(ROOT / words[0], words[1:])


def check_script(script: Path, words: Sequence[str]) -> None:
    """Find a script of the repository, and in it the flags that it is given."""
    assert script.is_file(), f"there is no {script.relative_to(ROOT)}"
    text = script.read_text("utf-8")
    for flag in (word for word in words if word.startswith("--")):
        assert flag in text, f"{script.relative_to(ROOT)} does not know {flag}"
