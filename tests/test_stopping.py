from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunus.errors import ConfigError
from prunus.stopping import Stopped, Stopping

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Where the tests run in the background, a shell has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_at_once_where_nothing_postpones_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reached = []
    with pytest.raises(Stopped) as stopped, Stopping():
        os.kill(os.getpid(), number)
        reached.append("behind")
    assert not reached
    assert stopped.value.exit_code == CODES[number]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", CODES)
def test_a_postponed_signal_waits_for_the_check(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    reached = []
    with pytest.raises(Stopped) as stopped, Stopping() as stopping, stopping.postponed():
        stopping.check()
        assert not stopping.due
        os.kill(os.getpid(), number)
        reached.append("after the signal")
        assert stopping.due
        stopping.check()
        reached.append("after the check")
    assert reached == ["after the signal"]
    assert stopped.value.exit_code == CODES[number]
    assert "stopping after the step under way; once more (Ctrl-C) ends at once" in capfd.readouterr().err


def test_a_postponed_signal_waits_for_the_end_of_the_block_at_most() -> None:
    reached = []
    with pytest.raises(Stopped), Stopping() as stopping:
        with stopping.postponed():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("within")
        reached.append("behind")
    assert reached == ["within"]


def test_a_second_signal_does_not_wait() -> None:
    reached = []
    with pytest.raises(Stopped) as stopped, Stopping() as stopping, stopping.postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after the first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]
    assert stopped.value.exit_code == 130


def test_an_error_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ZeroDivisionError), Stopping() as stopping, stopping.postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError


def test_the_time_box() -> None:
    stopping = Stopping(max_minutes=0.001)
    with stopping.postponed():
        assert not stopping.due
        time.sleep(0.07)
        assert stopping.due
        with pytest.raises(Stopped, match=r"the time is over \(--max-minutes 0\.001\)") as stopped:
            stopping.check()
    assert stopped.value.exit_code == 3
    for bad in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"--max-minutes is .*above 0, e\.g\. --max-minutes 9"):
            Stopping(bad)


def test_ignored_signals_stay_so_and_other_threads_take_none() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stopping():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    found: list[object] = []

    def elsewhere() -> None:
        with Stopping() as stopping:
            found.append(signal.getsignal(signal.SIGTERM))
            found.append(stopping.due)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before, False]


@pytest.mark.parametrize("number", CODES)
def test_a_command_that_does_not_train_leaves_with_a_message(number: signal.Signals, tmp_path: Path) -> None:
    """The list of networks is a pipe that nobody writes to: there the command waits."""
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-c", LISTENING, "check", f"@{tmp_path}/pipe"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            writer = reading(tmp_path / "pipe", process)
            # Python heeds a signal between two of its instructions: one that comes after the last of them and before
            # the system's read would wait for the next to wake it. So it is given time to get there, and a second one.
            time.sleep(0.1)
            process.send_signal(number)
            try:
                output, errors = process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                output, errors = process.communicate(timeout=20)
            os.close(writer)
        finally:
            process.kill()
    assert process.returncode == CODES[number], output + errors
    assert errors.endswith(": stopped\n")
    assert "Traceback" not in errors


def reading(pipe: Path, process: subprocess.Popen[str]) -> int:
    """Open the other end once the process reads."""
    while True:
        assert process.poll() is None, process.communicate()
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.01)


LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("prunus", run_name="__main__")
"""
