"""What people are used to on a command line: completion, colours, quiet and verbose, JSON, a page that says it all."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import typer
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

from prunus import pipeline
from prunus.checking import CheckRow
from prunus.cli import app
from prunus.cli.talk import Talk, run_and_show
from prunus.errors import ConfigError
from prunus.stopping import TIME_IS_OVER
from tests.report.sample_run import write_run

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
WRONG = [sys.executable, "-m", "prunus", "compress", "--epochs", "ten"]


def prunus_command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})


def cli_page() -> ModuleType:
    loader = SourceFileLoader("cli_page", str(ROOT / "scripts" / "cli_page"))
    spec = spec_from_loader("cli_page", loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_page_of_the_command_line_has_every_command_and_flag_as_it_is(tmp_path: Path) -> None:
    script = cli_page()
    assert script.main(["--check"]) == 0, "type scripts/cli_page"
    for name in get_command(app).commands:  # type: ignore[attr-defined]  # the app is a group
        assert f"### `prunus {name}" in PAGE
    assert "| `--quiet`, `-q` |" in PAGE and "--search-epochs" in PAGE
    changed = tmp_path / "cli.md"
    changed.write_text(PAGE.replace("| `--quiet`, `-q` |", "| `--silent` |"))
    assert script.main(["--check"], changed) == 1
    assert script.main([], changed) == 0 and changed.read_text() == PAGE


def test_the_page_tells_all_exit_codes() -> None:
    codes = re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert codes == ["0", "1", "2", str(TIME_IS_OVER), "130", "143"]


def test_every_command_with_a_table_has_json_quiet_and_verbose() -> None:
    for section in PAGE.split("### `prunus ")[1:]:
        for flag in ("`--json`", "`--quiet`, `-q`", "`--verbose`, `-v`"):
            assert flag in section, section.partition("`")[0]


RUN = ("--model", "resnet8", "--data", "digits", "--macs", "0.5", "--epochs", "1", "--finetune-epochs", "0")
COMMANDS = {
    "compress": ["compress", *RUN, "--threads", "1", "--out", "run"],
    "compress --dense-only": ["compress", *RUN, "--threads", "1", "--out", "dense", "--dense-only"],
    "compress --print-config": ["compress", *RUN, "--print-config"],
    "demo": ["demo", "--out", "run"],
    "report": ["report", "run"],
    "report --follow": ["report", "run", "--follow"],
    "sweep": ["sweep", "sweep.yaml"],
    "sweep --dry-run": ["sweep", "sweep.yaml", "--dry-run"],
    "inspect": ["inspect", "resnet8"],
    "check": ["check", "resnet8"],
    "export": ["export", "run", "--to", "pt2"],
    "predict": ["predict", "run", "image.png"],
    "bench": ["bench", "run", "--runtime", "torch"],
    "doctor": ["doctor"],
}


@pytest.mark.slow
def test_every_command_prints_json_alone_and_is_quiet_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("image.png")
    cells = "base: {model: resnet8, data: digits, epochs: 1, finetune_epochs: 0, threads: 1}\ngrid: {macs: [0.5]}\n"
    Path("sweep.yaml").write_text(cells)
    # The demo is the same command with other settings, and lasts: here its run is there already.
    monkeypatch.setattr(pipeline, "demo", lambda out, *_, **__: out)
    assert {words[0] for words in COMMANDS.values()} == set(get_command(app).commands)  # type: ignore[attr-defined]
    for name, words in COMMANDS.items():
        result = prunus_command(*words, "--json", "--quiet")
        assert result.exit_code == 0, f"{name}: {result.output}"
        assert result.stderr == "", name
        assert json.loads(result.stdout), name
        plain = prunus_command(*words, "--quiet")
        assert plain.exit_code == 0 and plain.stderr == "", f"{name}: {plain.output}"
        assert (plain.stdout == "") == (name == "doctor"), f"{name} has a result, which is no chatter"
        assert "\x1b" not in plain.stdout, name


@pytest.mark.parametrize(("typed", "offered"), [("prunus in", ["inspect"]), ("prunus compress --ep", ["--epochs"])])
def test_a_shell_completes_commands_and_flags(typed: str, offered: list[str]) -> None:
    words = {"_PRUNUS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "prunus"], env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == offered, done.stderr


def test_what_a_flag_is_for_stays_on_the_line_of_its_offer() -> None:
    words = {"_PRUNUS_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asked = os.environ | words | {"_TYPER_COMPLETE_ARGS": "prunus compress --sea"}
    done = subprocess.run([sys.executable, "-m", "prunus"], env=asked, capture_output=True, text=True, check=False)
    offers = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert offers == ["--search-epochs", "--search-minutes"], done.stdout + done.stderr


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in prunus_command("--help").output


def on_a_terminal(command: list[str], **environment: str) -> str:
    ours, theirs = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "100"} | environment
    try:
        subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, check=False)
        return os.read(ours, 100_000).decode()
    finally:
        os.close(theirs)
        os.close(ours)


def test_colours_are_for_terminals_and_no_color_is_heard() -> None:
    red = "\x1b[1;31merror:"
    assert red in on_a_terminal(WRONG)
    plain = on_a_terminal(WRONG, NO_COLOR="1")
    assert "error:" in plain and not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)
    piped = subprocess.run(WRONG, capture_output=True, text=True, check=False)
    assert piped.returncode == 2 and piped.stdout == ""
    assert piped.stderr.startswith("error: ") and "\x1b" not in piped.stderr


def test_data_goes_to_stdout_and_words_to_stderr() -> None:
    result = prunus_command("check", "resnet8", "tests.blocks:c2f", "--json")
    rows = [CheckRow.model_validate(row) for row in json.loads(result.stdout)]
    assert [row.spec for row in rows] == ["resnet8", "tests.blocks:c2f"]
    assert result.stderr.count("exact") == 2
    assert prunus_command("check", "resnet8", "tests.blocks:c2f", "--json", "--quiet").stderr == ""


def test_quiet_drops_all_that_is_said_meanwhile_but_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(talk: Talk) -> Path:
        talk.messages.print("training")
        print("a bar", file=sys.stderr)
        return write_run(tmp_path / "run")

    run_and_show(work)
    assert capsys.readouterr().err == "training\na bar\n"
    run_and_show(work, quiet=True, json=True)
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out) == json.loads((tmp_path / "run" / "summary.json").read_text())

    def fail(_: Talk) -> Path:
        raise ConfigError("no such thing")

    with pytest.raises(typer.Exit):
        run_and_show(fail, quiet=True)
    assert capsys.readouterr().err == "error: no such thing\n"


def test_verbose_shows_an_error_with_its_traceback() -> None:
    assert "Traceback" not in prunus_command("inspect", "resnet21").stderr
    said = prunus_command("inspect", "resnet21", "--verbose").stderr
    assert said.startswith("Traceback") and "\nerror: There is no model named 'resnet21'." in said


def test_tables_in_a_pipe_are_not_cut_to_a_terminals_width() -> None:
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "prunus", "inspect", "resnet20"], env=env, capture_output=True, text=True, check=True
    )
    assert "layer2.0.conv2 +3 → layer2.1.conv1 +3" in done.stdout and "135.2 kB" in done.stdout
