"""Where jobs run: what the scheduler asks of an executor, and the one that starts processes on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from signal import SIGKILL
from typing import Protocol, Self

from prunus.sweep.child import Child, Outcome, Task

_GRACE = 10.0  # seconds between the request to end at once and the kill
_LOOK_AGAIN = 0.05  # seconds


class Executor(Protocol):
    """Runs a number of tasks at once; as a context it leaves no process behind."""

    slots: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def start(self, task: Task) -> int | None:
        """Start a task in a free slot; return its process' number where that is known at once."""
        ...

    def ended(self) -> list[tuple[str, Outcome]]:
        """Return names and outcomes of the tasks that ended since the last call."""
        ...

    def stop(self) -> None:
        """Ask all tasks to end at a checkpoint; a second time, at once."""
        ...


class LocalExecutor:
    """Processes on this machine, `slots` at once, each given the next of `devices` that the fewest use."""

    def __init__(self, slots: int, devices: Sequence[str] = ()) -> None:
        self.slots = slots
        self._devices = tuple(devices)
        self._children: dict[str, tuple[Child, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._children:
            return
        self.stop()
        self.stop()
        end = time.monotonic() + _GRACE
        while self._children and time.monotonic() < end:
            self.ended()
            time.sleep(_LOOK_AGAIN)
        for child, _ in self._children.values():
            child.signal(SIGKILL)
        self._children.clear()

    def start(self, task: Task) -> int | None:
        """Start a task on the device that the fewest others use."""
        device = ""
        if self._devices:
            used = [place for _, place in self._children.values()]
            device = min(self._devices, key=used.count)
            task = replace(task, arguments=(*task.arguments, "--device", device))
        child = Child(task)
        self._children[task.name] = (child, device)
        return child.pid

    def ended(self) -> list[tuple[str, Outcome]]:
        """Return names and outcomes of the tasks that ended since the last call."""
        outcomes = [(name, outcome) for name, (child, _) in self._children.items() if (outcome := child.ended())]
        for name, _ in outcomes:
            del self._children[name]
        return outcomes

    def stop(self) -> None:
        """Ask all tasks to end at a checkpoint; a second time, at once."""
        for child, _ in self._children.values():
            child.stop()
