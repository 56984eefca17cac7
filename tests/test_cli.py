"""The command line as a user meets it: quick help, one flag a field, messages instead of tracebacks."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import prunus
from prunus import checking, pipeline
from prunus.checking import CheckRow, FrozenChannels
from prunus.cli import app
from prunus.cli.talk import STOPPED, Talk, run_and_show
from prunus.config import RunConfig
from prunus.errors import BudgetError, ConfigError
from tests.report.sample_run import write_run

GOOD = ["compress", "--model", "resnet20", "--data", "digits", "--macs", "0.5"]


def prunus_command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="prunus", env={"COLUMNS": "200", "NO_COLOR": "1"})


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_help_answers_in_under_half_a_second() -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "prunus", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The processor's time, not the clock's: others may keep the machine busy.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


def test_help_does_not_import_what_is_heavy() -> None:
    code = (
        "import sys\nfrom prunus.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'pydantic', 'plotly', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_teaches_by_example() -> None:
    top = plain(prunus_command("--help").output)
    assert "prunus demo" in top and "prunus compress --model resnet20 --data cifar10 --size 0.64MB" in top
    command = plain(prunus_command("compress", "--help").output)
    for part in ("--method layer-fusion --macs 0.5", "--checkpoint dense.safetensors", "--config run.yaml", "Ctrl-C"):
        assert part in command
    assert "--out" in plain(prunus_command("demo", "--help").output)


def test_every_setting_has_its_flag_and_every_flag_its_words() -> None:
    text = plain(prunus_command("compress", "--help").output)
    for name, field in RunConfig.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text, name
        words = (field.description or "").split()[:3]
        assert " ".join(words) in text, name


def test_version() -> None:
    assert prunus_command("--version").output.startswith(f"prunus {prunus.__version__} (torch 2.")


def test_print_config_shows_flags_over_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: vgg16_bn\ndata: digits\nsize: 0.64MB\nepochs: 3\n")
    result = prunus_command("compress", "--config", str(file), "--model", "resnet20", "--print-config", "--no-flip")
    assert result.exit_code == 0
    (tmp_path / "printed.yaml").write_text(result.stdout)
    again = prunus_command("compress", "--config", str(tmp_path / "printed.yaml"), "--print-config")
    assert again.stdout == result.stdout
    assert "model: resnet20\n" in result.stdout and "epochs: 3\n" in result.stdout and "flip: false\n" in result.stdout


def test_all_errors_of_the_flags_at_once_on_stderr() -> None:
    result = prunus_command("compress", "--epochs", "ten", "--seed", "x")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "error: The configuration has 5 errors:" in plain(result.stderr)
    assert "--epochs: 'ten' is not a whole number" in plain(result.stderr)


def test_a_wrong_flag_is_named_with_its_neighbour() -> None:
    result = prunus_command(*GOOD, "--epohs", "3")
    assert result.exit_code == 2
    assert "--epochs" in plain(result.stderr)


def test_a_prunus_error_is_a_message_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Path:
        raise BudgetError("0.20 of 255.3 M MACs is [not] reachable")

    monkeypatch.setattr(pipeline, "compress", fail)
    result = prunus_command(*GOOD)
    assert result.exit_code == 2
    assert plain(result.stderr) == "error: 0.20 of 255.3 M MACs is [not] reachable\n"
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [GOOD, ["demo"]])
def test_ctrl_c_is_calm(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    def stop(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "compress", stop)
    monkeypatch.setattr(pipeline, "demo", stop)
    result = prunus_command(*arguments)
    assert result.exit_code == 130
    assert "stopped; the same command goes on where it was" in result.stderr
    assert "Traceback" not in result.output


def test_a_bug_keeps_its_traceback() -> None:
    def wrong(_: Talk) -> Path:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_and_show(wrong)


def test_exit_codes_without_a_runner(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(_: Talk) -> Path:
        raise ConfigError("no")

    with pytest.raises(typer.Exit) as caught:
        run_and_show(wrong)
    assert caught.value.exit_code == 2
    assert "error: no" in plain(capsys.readouterr().err)
    assert STOPPED == "stopped; the same command goes on where it was"


def test_compress_hands_the_configuration_over_and_ends_in_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[RunConfig] = []
    ways: list[tuple[object, object, object]] = []

    def run(config: RunConfig, *_: object, fresh: object, max_minutes: object, dense_only: object) -> Path:
        seen.append(config)
        ways.append((fresh, max_minutes, dense_only))
        return write_run(tmp_path / "run")

    monkeypatch.setattr(pipeline, "compress", run)
    result = prunus_command(*GOOD, "--epochs", "7", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert (seen[0].epochs, seen[0].macs, seen[0].out) == (7, 0.5, tmp_path / "run")
    prunus_command(*GOOD, "--fresh", "--max-minutes", "9")
    prunus_command(*GOOD, "--dense-only")
    assert ways == [(False, None, False), (True, 9.0, False), (False, None, True)]
    assert "86.64 %" in result.stdout and "639.9 kB" in result.stdout


def test_a_missing_config_file_is_said_so() -> None:
    result = prunus_command("compress", "--config", "/no/such.yaml")
    assert result.exit_code == 2
    assert "There is no configuration file /no/such.yaml" in plain(result.stderr)


def test_an_unreachable_unit_is_refused_before_anything_runs() -> None:
    result = prunus_command("compress", "--model", "resnet20", "--data", "digits", "--size", "0.64 Megabananas")
    assert result.exit_code == 2
    assert "--size" in plain(result.stderr)


def test_ctrl_c_in_the_middle_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"
    # Where the tests run in the background, a shell has them ignore Ctrl-C, and what they start inherits that.
    program = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "runpy.run_module('prunus', run_name='__main__')"
    command = [sys.executable, "-c", program, "compress", "--model", "resnet8", "--data", "digits", "--macs", "0.5"]
    command += ["--epochs", "1000", "--threads", "1", "--out", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not (metrics.exists() and metrics.read_text()) and process.poll() is None:
                assert time.monotonic() < deadline, "no epoch in two minutes"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert errors.endswith(f"\ninterrupted: {STOPPED}\n")
    assert "stopping after the step under way; once more (Ctrl-C) ends at once" in errors
    assert "Traceback" not in errors
    assert list((run / "checkpoints").glob("dense*.safetensors"))


def test_the_time_box_ends_with_exit_code_3_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = ["compress", "--model", "resnet8", "--data", "digits", "--macs", "0.5", "--epochs", "1"]
    command += ["--finetune-epochs", "0", "--threads", "1", "--recover", "none", "--out", str(tmp_path)]
    stopped = prunus_command(*command, "--max-minutes", "0.00001")
    assert stopped.exit_code == 3, stopped.output
    assert plain(stopped.stderr).endswith(f"\nthe time is over (--max-minutes 1e-05): {STOPPED}\n")
    assert (tmp_path / "checkpoints" / "dense.ckpt.safetensors").exists()
    assert prunus_command(*command).exit_code == 0
    assert (tmp_path / "summary.json").exists()
    refused = prunus_command(*command, "--max-minutes", "0")
    assert refused.exit_code == 2
    assert "--max-minutes is 0, and should be above 0, e.g. --max-minutes 9" in plain(refused.stderr)


def test_check_tells_a_row_a_network_and_what_stayed_whole(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    (tmp_path / "list.txt").write_text("resnet8  # the smallest\n")
    result = prunus_command("check", f"@{tmp_path}/list.txt", "tests.blocks:c2f", "--ratio", "0.3", "--rows", str(file))
    assert result.exit_code == 0, result.output
    out = plain(result.stdout)
    assert "30% of every group's channels removed" in out
    assert out.count("exact") == 3 and "2 networks: 2 exact" in out
    assert "resnet8 keeps whole:\n  fc.weight, 10 channels: " in out
    rows = [CheckRow.model_validate(row) for row in json.loads(file.read_text())]
    assert [row.spec for row in rows] == ["resnet8", "tests.blocks:c2f"]
    assert all(row.verdict == "exact" and row.ratio == 0.3 for row in rows)
    assert [line.split()[:2] for line in plain(result.stderr).splitlines()] == [["exact", row.spec] for row in rows]


def test_check_goes_on_after_a_failure_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(model: object, *_: object, **__: object) -> object:
        raise IndexError("seven")

    monkeypatch.setattr(checking, "prune", prune)
    result = prunus_command("check", "resnet8", "squeezenet")
    assert result.exit_code == 1
    assert "squeezenet: IndexError: seven" in plain(result.stdout) and "2 networks: 2 failed" in plain(result.stdout)
    assert prunus_command("check", "resnet8").stderr == ""  # no progress where there is one network


def test_check_of_all_is_the_zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checking, "check_model", lambda source, *_, **__: row(source.spec))
    (tmp_path / "list.txt").write_text("tests.blocks:c2f\n")
    result = prunus_command("check", "--all", "--from", str(tmp_path / "list.txt"), "resnet8")
    assert result.exit_code == 0, result.output
    assert f"{len(prunus.MODELS) + 1} networks: {len(prunus.MODELS)} exact, 1 approximate" in plain(result.stdout)


def row(spec: str) -> CheckRow:
    if ":" not in spec:
        return CheckRow(spec=spec, verdict="exact", ratio=0.5, params_before=10, params_after=5)
    return CheckRow(spec=spec, verdict="approximate", reason="aten.cumsum: within 1e-5", ratio=0.5)


def test_equal_reasons_are_one_line_and_many_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [
        FrozenChannels(tensor=f"a{i}.weight", count=1, channels=3, op="", where="", reason="odd") for i in range(20)
    ]
    same = FrozenChannels(
        tensor="b.weight", count=50, channels=400, op="aten.cumsum", where="net.py:3", reason="adds [channels] up"
    )
    found = row("resnet8").model_copy(update={"frozen": (same, *many)})
    monkeypatch.setattr(checking, "check_model", lambda *_, **__: found)
    out = plain(prunus_command("check", "resnet8").stdout)
    assert "b.weight and 49 more, 400 channels: adds [channels] up (aten.cumsum at net.py:3)\n" in out
    assert "a10.weight" in out and "a11.weight" not in out
    assert "and 9 more reasons; --verbose shows all of them" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["resnet21", "timm:resnet18s"],
            r"named 'resnet21'\. Did you mean .*\n.*timm \S+ has no model named 'resnet18s'",
        ),
        (["--rows", "rows.json"], "name a network, such as resnet20 or timm:resnet18, or ask for --all"),
        (["@/no/such/list.txt"], "no list of networks at /no/such/list.txt"),
        (["resnet8", "--ratio", "1"], "--ratio"),
    ],
)
def test_a_wrong_request_of_check_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(checking, "check_model", None)
    result = prunus_command("check", *arguments)
    assert result.exit_code == 2
    assert re.search(message, plain(result.stderr))
    assert "Traceback" not in result.output


def test_ctrl_c_ends_a_check_calmly(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> CheckRow:
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "check_model", stop)
    result = prunus_command("check", "resnet8")
    assert result.exit_code == 130
    assert result.stderr == "\nstopped\n"


def test_the_help_of_check_teaches_by_example() -> None:
    text = plain(prunus_command("check", "--help").output)
    for part in ("timm:efficientnet_b0", "mypackage.nets:build", "@networks.txt", "--all --ratio 0.3 --rows rows.json"):
        assert part in text
