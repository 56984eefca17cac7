"""One process that works on a job: started under a lock that lives as long as it does, and asked to end by SIGTERM."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_TAIL_BYTES = 20_000  # of a log, that are searched for what went wrong
_TAIL_LINES = 8


@dataclass(frozen=True)
class Task:
    """What to start: arguments of `python -m prunus`, and the files that go with it; plain data, for any machine."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    lock: Path
    cwd: Path = field(default_factory=Path.cwd)  # paths in settings are relative to it


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        code: its exit code, negative for a signal; None where it was not started, since a process that a killed sweep
            left behind works on the same job.
        said: the last lines of what it printed.
    """

    code: int | None
    seconds: float = 0.0
    said: tuple[str, ...] = ()


class Child:
    """A process at work. It inherits the lock, which so ends with it, even if whoever started it is gone before."""

    def __init__(self, task: Task) -> None:
        for file in (task.log, task.lock):
            file.parent.mkdir(parents=True, exist_ok=True)
        self._task = task
        self._begun = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        with task.lock.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            with task.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "prunus", *task.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=task.cwd,
                    pass_fds=(lock.fileno(),),
                    process_group=0,  # a Ctrl-C in the terminal is for the sweep, which passes it on once
                )

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return None if self._process is None else self._process.pid

    def ended(self) -> Outcome | None:
        """Tell how it ended; None while it works."""
        if self._process is None:
            return Outcome(None)
        code = self._process.poll()
        if code is None:
            return None
        return Outcome(code, time.monotonic() - self._begun, _last_words(self._task.log, self._log_start))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def stop(self) -> None:
        """Ask it to end at a checkpoint; a second time, at once."""
        self.signal(signal.SIGTERM)


def _last_words(log: Path, start: int) -> tuple[str, ...]:
    """Return the last lines that an attempt printed: from its error message on, if there is one."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - _TAIL_BYTES))
        lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("error: "):
            return tuple(lines[number:][:_TAIL_LINES])
    return tuple(lines[-_TAIL_LINES:])
