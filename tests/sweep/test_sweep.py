"""Sweeps that really run: failed, killed, out of time, and complete in the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import RunError
from prunus.sweep import load_sweep
from prunus.sweep.cells import SweepFolder
from prunus.sweep.child import Child, Outcome, Task
from prunus.sweep.executors import LocalExecutor
from prunus.sweep.results import Row, _front
from prunus.sweep.states import State, only_sweep, read_state, write_state

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900.0  # seconds: machines are busy
TWELVE = """\
base: {model: resnet8, data: digits, epochs: 1, finetune_epochs: 1, recover: none, threads: 1}
grid:
  criterion: [l1_norm, bn_scale, random]
  macs: [0.4, 0.6]
  seed: [0, 1]
jobs: 2
"""


def command(file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "prunus", "sweep", str(file), "--out", str(file.parent / "out"), *arguments]


def finished(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(file, *arguments), capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT
    )


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, "the sweep was over too early"
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.05)


def running() -> dict[tuple[int, str], int]:
    """Every process, as its number and the time of its start, with its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            found[int(stat.parent.name), fields[19]] = int(fields[1])
    return found


def descendants(process: int) -> set[tuple[int, str]]:
    below = {process}
    found: set[tuple[int, str]] = set()
    while more := {key for key, parent in running().items() if parent in below} - found:
        found |= more
        below |= {number for number, _ in more}
    return found


def kill_all(processes: set[tuple[int, str]]) -> None:
    for number, _ in processes & running().keys():
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def states(folder: SweepFolder) -> dict[str, State]:
    return {path.stem: read_state(path) for path in (folder.path / "states").glob("*.json")}


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_twelve_cells_with_failures_and_a_kill_end_complete(
    executor: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = written(tmp_path, f"{TWELVE}executor: {executor}\n")
    folder = SweepFolder(tmp_path / "out")
    cells = json.loads(finished(file, "--dry-run", "--json").stdout)
    assert len(cells) == 12 and len({cell["dense"] for cell in cells}) == 2
    no_folder, in_use = cells[0]["name"], cells[3]["name"]
    blocking = folder.run("cell", no_folder)
    blocking.parent.mkdir(parents=True)
    blocking.write_text("in the way of a folder")
    folder.run("cell", in_use).mkdir()

    with (folder.run("cell", in_use) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another run in that folder would
        killed_in_the_middle(command(file), folder, request)
        before = {path: path.stat().st_mtime_ns for path in folder.path.glob("cells/*/summary.json")}

        out_of_time = finished(file, "--max-minutes", "0.05")
        assert out_of_time.returncode == 3, out_of_time.stderr
        assert "the same command goes on" in out_of_time.stderr
        assert not any(state.status == "running" for state in states(folder).values())

        with_failures = finished(file, "--json")
        assert with_failures.returncode == 1, with_failures.stderr
        found = {cell["name"]: cell for cell in json.loads(with_failures.stdout)["cells"]}
        assert {name for name, cell in found.items() if cell["status"] != "done"} == {no_folder, in_use}
        assert "cannot write" in found[no_folder]["error"][0]
        assert "is in use by" in found[in_use]["error"][0]
        assert found[in_use]["attempts"] >= 2 and found[in_use]["status"] == "failed"

    blocking.unlink()
    last = finished(file)
    assert last.returncode == 0, last.stderr
    assert "12 of 12 cells are done" in last.stdout
    results = json.loads(folder.results.read_text())
    assert folder.page.read_text().count('<th scope="row">') == 2 * 12, "each cell has its figures and its run folder"
    check_complete(results, {cell["name"] for cell in cells})
    if executor == "local":
        cell = folder.run("cell", no_folder)
        alone = [sys.executable, "-m", "prunus", "compress", "--config", str(cell / "config.yaml")]
        subprocess.run([*alone, "--out", str(tmp_path / "alone"), "--quiet"], check=True, capture_output=True, cwd=ROOT)
        assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (cell / "model.safetensors").read_bytes()
    assert before and all(path.stat().st_mtime_ns == at for path, at in before.items()), "done cells were run again"


def killed_in_the_middle(arguments: list[str], folder: SweepFolder, request: pytest.FixtureRequest) -> None:
    """Start a sweep and, with cells done and cells at work, kill it and one of its processes; another one lives on."""
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
    wait_for(lambda: len(list(folder.path.glob("cells/*/summary.json"))) >= 3, process)
    wait_for(lambda: any(state.status == "running" for state in states(folder).values()), process)
    whole = descendants(process.pid)
    process.kill()
    process.wait()
    request.addfinalizer(lambda: kill_all(whole))  # Ray's own agents outlive a driver that is killed, some for minutes
    at_work = [state.pid for state in states(folder).values() if state.pid]  # under Ray nobody knows
    if at_work:
        os.kill(at_work[0], signal.SIGKILL)


def check_complete(results: dict[str, Any], names: set[str]) -> None:
    assert results["complete"] is True
    rows = results["cells"]
    assert {row["name"] for row in rows} == names
    for row in rows:
        assert row["status"] == "done" and row["error"] == []
        assert row["macs"] <= row["settings"]["macs"] * 763_530, "over the budget"
        assert 0 <= row["held_out_accuracy"] <= 1 and 0 <= row["test_accuracy"] <= 1
        epochs = json.loads((Path(row["run"]) / "summary.json").read_text())["epochs"]
        assert epochs == {"dense": 1, "search": 0, "finetune": 1}
    for cost in ("macs", "size_bytes"):
        front = results["front"][cost]
        assert front and set(front) == {row["name"] for row in rows if cost in row["front"]}


def test_a_dense_training_that_fails_takes_its_cells_along(tmp_path: Path) -> None:
    text = "base: {model: resnet8, data: no/such.zip}\ngrid: {macs: [0.4, 0.6]}\nretries: 0\n"
    result = finished(written(tmp_path, text), "--json")
    assert result.returncode == 1, result.stderr
    rows = json.loads(result.stdout)["cells"]
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert all("its dense training dense-resnet8-" in row["error"][0] for row in rows)
    assert all("no/such.zip" in " ".join(row["error"]) for row in rows)


def test_a_search_asks_for_all_its_trials_though_they_fail(tmp_path: Path) -> None:
    text = "base: {model: resnet8, data: no/such.zip}\nretries: 0\n"
    text += "search: {space: {macs: {low: 0.4, high: 0.6}}, trials: 3}\n"
    result = finished(written(tmp_path, text), "--json")
    assert result.returncode == 1, result.stderr
    rows = json.loads(result.stdout)["cells"]
    assert [row["status"] for row in rows] == ["failed"] * 3
    assert len({row["settings"]["macs"] for row in rows}) == 3
    assert all("no/such.zip" in " ".join(row["error"]) for row in rows)


def test_two_sweeps_in_one_folder_refuse(tmp_path: Path) -> None:
    with only_sweep(tmp_path), pytest.raises(RunError, match=f"in use by a sweep, process {os.getpid()}"):  # noqa: SIM117
        with only_sweep(tmp_path):
            pass
    with only_sweep(tmp_path):
        pass


def test_a_process_is_not_started_twice_though_its_sweep_is_gone(tmp_path: Path) -> None:
    def task(*arguments: str) -> Task:
        return Task("a", arguments, tmp_path / "a.log", tmp_path / "locks" / "a")

    with (tmp_path / "other").open("w"):
        first = Child(task("--version"))
        assert first.pid is not None
        second = Child(task("--version"))
        assert (second.pid, second.ended()) != (None, None) and second.ended() is not None
    while (outcome := first.ended()) is None:
        time.sleep(0.02)
    assert outcome.code == 0 and "prunus" in outcome.said[0]
    third = Child(task("compress", "--epochs", "many"))
    while (outcome := third.ended()) is None:
        time.sleep(0.02)
    assert outcome.code == 2 and outcome.said[0].startswith("error: The configuration has")
    assert "prunus 0" not in " ".join(outcome.said), "words of an earlier attempt"


def test_processes_are_spread_over_devices(tmp_path: Path) -> None:
    settings = ("compress", "--model", "resnet8", "--data", "digits", "--macs", "0.5", "--print-config")
    with LocalExecutor(3, ("cpu", "cuda:1")) as executor:
        for name in "abc":
            executor.start(Task(name, settings, tmp_path / f"{name}.log", tmp_path / "locks" / name))
        outcomes: dict[str, Outcome] = {}
        while len(outcomes) < 3:
            outcomes |= dict(executor.ended())
            time.sleep(0.02)
    assert [outcomes[name].code for name in "abc"] == [0, 0, 0]
    devices = [
        line for name in "abc" for line in (tmp_path / f"{name}.log").read_text().splitlines() if "device" in line
    ]
    assert devices == ["device: cpu", "device: cuda:1", "device: cpu"]


def test_leaving_an_executor_ends_its_processes(tmp_path: Path) -> None:
    settings = (
        "compress",
        "--model",
        "resnet8",
        "--data",
        "digits",
        "--macs",
        "0.5",
        "--epochs",
        "9999",
        "--threads",
        "1",
    )
    with LocalExecutor(1) as executor:
        process = executor.start(
            Task("a", (*settings, "--out", str(tmp_path / "a")), tmp_path / "log", tmp_path / "lock")
        )
    assert process is not None
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not (Path("/proc") / str(process)).exists()


def test_a_state_is_kept(tmp_path: Path) -> None:
    state = State(status="failed", attempts=2, seconds=1.5, error=("a", "b"))
    write_state(tmp_path / "a.json", state)
    assert read_state(tmp_path / "a.json") == state
    assert read_state(tmp_path / "none.json") == State()


def test_the_front_is_what_no_other_beats() -> None:
    def row(name: str, accuracy: float | None, macs: int | None) -> Row:
        known = {"settings": {}, "run": "", "status": "done", "attempts": 1, "seconds": 1.0}
        return Row.model_validate(known | {"name": name, "held_out_accuracy": accuracy, "macs": macs})

    rows = [
        row("dear", 0.9, 50),
        row("worse for more", 0.7, 40),
        row("cheap", 0.5, 10),
        row("middle", 0.8, 30),
        row("as good for more", 0.8, 35),
        row("as cheap and worse", 0.4, 10),
        row("failed", None, None),
    ]
    assert _front(rows, "macs") == ["cheap", "middle", "dear"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, TWELVE)
    assert len(load_sweep(file).cells) == 12
    result = finished(file, "--dry-run")
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 12
    assert "12 cells from 2 dense trainings" in result.stderr
    assert not (tmp_path / "out").exists()
