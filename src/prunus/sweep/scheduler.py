"""Which job runs when: dense trainings before the cells that need them, failed ones again, and none of them lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prunus.errors import FileFormatError, PrunusError
from prunus.stopping import Stopping
from prunus.sweep.cells import Job, SweepFolder, dense_job, prepare
from prunus.sweep.child import Outcome, Task
from prunus.sweep.executors import Executor
from prunus.sweep.states import State, read_state, write_state

_LOOK_AGAIN = 0.1  # seconds
_BUSY_AGAIN = 2.0  # seconds until a job is tried again that another process works on

What = Literal["there", "started", "done", "failed", "again", "busy", "stopped", "no data"]
Tell = Callable[[What, Job, State], None]


@dataclass
class Scheduler:
    """The jobs of one call of `prunus sweep`.

    Attributes:
        arguments: what the command of every cell gets beside its configuration and folder.
        tell: is told what happens to which job.
        more: gives another cell once nothing that waits can start, or None; a search has its trials here.
        settled: is told of every cell that is done, or failed for good.
    """

    folder: SweepFolder
    executor: Executor
    retries: int
    tell: Tell
    arguments: Callable[[Job], Sequence[str]] = lambda job: ()
    more: Callable[[], Job | None] | None = None
    settled: Callable[[Job, State], None] = lambda job, state: None
    _waiting: deque[Job] = field(default_factory=deque)
    _running: dict[str, Job] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)  # in this call
    _not_before: dict[str, float] = field(default_factory=dict)
    _dense: dict[str, bool | None] = field(default_factory=dict)  # whether it is there; None where that is open

    def add(self, cell: Job) -> bool:
        """Take a cell up, behind the dense training that it needs; False for one that is done or cannot be."""
        if self.folder.is_done(cell):
            state = self._end(cell, self._state(cell), "done")
            self.tell("there", cell, state)
            self._settle(cell, state)
            return False
        if cell.needs is not None and cell.needs not in self._dense:
            dense = dense_job(cell)
            self._dense[dense.name] = self.folder.is_done(dense) or None
            if not self._dense[dense.name]:
                self._wait(dense)
        if cell.needs is not None and self._dense[cell.needs] is False:
            self._fail_along(cell, cell.needs)
            return False
        self._wait(cell)
        return True

    def _wait(self, job: Job) -> None:
        state = self._state(job)
        if state.status == "running":  # said by a sweep that was killed
            write_state(self.folder.state(job.name), state.model_copy(update={"status": "pending", "pid": None}))
        self._waiting.append(job)

    def run(self, stopping: Stopping) -> bool:
        """Carry everything out; True where nothing is left, False where it was time to leave before."""
        stopped = False
        while True:
            for name, outcome in self.executor.ended():
                self._handle(self._running.pop(name), outcome, stopped)
            if stopping.due and not stopped:
                stopped = True
                self.executor.stop()
            if not stopped:
                self._start()
            if not self._running and (stopped or not self._waiting):
                return not self._waiting and self.more is None
            time.sleep(_LOOK_AGAIN)

    def _start(self) -> None:
        while len(self._running) < self.executor.slots:
            job = self._next()
            if job is None:
                return
            state = self._state(job)
            try:
                prepare(job, self.folder)
            except PrunusError as error:
                self._failed(job, state, Outcome(2, 0.0, (f"error: {error}",)))
                continue
            pid = self.executor.start(self._task(job))
            self._running[job.name] = job
            state = state.model_copy(update={"status": "running", "pid": pid})
            write_state(self.folder.state(job.name), state)
            self.tell("started", job, state)

    def _next(self) -> Job | None:
        """Take the first job that can start now; ask for another cell where none of those that wait can."""
        now = time.monotonic()
        for job in self._waiting:
            there = job.needs is None or self._dense.get(job.needs)
            if there and self._not_before.get(job.name, 0.0) <= now:
                self._waiting.remove(job)
                return job
        while self.more is not None:
            cell = self.more()
            if cell is None:
                self.more = None
            elif self.add(cell):
                return self._next()
        return None

    def _task(self, job: Job) -> Task:
        place = self.folder.run(job.kind, job.name)
        own = ("--dense-only",) if job.kind == "dense" else ()
        settings = ("--config", str(place / "config.yaml"), "--out", str(place), *own)
        return Task(
            job.name,
            ("compress", *settings, *self.arguments(job)),
            self.folder.log(job.name).absolute(),
            self.folder.lock(job.name).absolute(),
        )

    def _handle(self, job: Job, outcome: Outcome, stopped: bool) -> None:
        state = self._state(job)
        state = state.model_copy(update={"pid": None, "seconds": state.seconds + outcome.seconds})
        if outcome.code is None:  # left running by a sweep that was killed
            self._not_before[job.name] = time.monotonic() + _BUSY_AGAIN
            self._put_back(job, state, "busy")
        elif self.folder.is_done(job):
            state = state.model_copy(update={"attempts": state.attempts + 1})
            self._settle(job, self._end(job, state, "done"))
            self.tell("done", job, self._state(job))
        elif stopped:
            self._put_back(job, state, "stopped")
        else:
            self._failed(job, state, outcome)

    def _failed(self, job: Job, state: State, outcome: Outcome) -> None:
        """Record why; try again behind all others, or for the last time have it stand as failed."""
        said = outcome.said or (f"it ended with {_how(outcome.code)} and said nothing",)
        if outcome.code is not None and outcome.code < 0:
            said = (*said, f"the process was ended by {_how(outcome.code)}")
        state = state.model_copy(update={"attempts": state.attempts + 1, "error": said})
        tries = self._tries[job.name] = self._tries.get(job.name, 0) + 1
        if tries <= self.retries:
            self._put_back(job, state, "again")
            return
        state = self._end(job, state, "failed")
        self.tell("failed", job, state)
        self._settle(job, state)

    def _put_back(self, job: Job, state: State, what: What) -> None:
        state = state.model_copy(update={"status": "pending"})
        write_state(self.folder.state(job.name), state)
        self._waiting.append(job)
        self.tell(what, job, state)

    def _end(self, job: Job, state: State, status: Literal["done", "failed"]) -> State:
        state = state.model_copy(update={"status": status, "pid": None} | ({"error": ()} if status == "done" else {}))
        write_state(self.folder.state(job.name), state)
        return state

    def _settle(self, job: Job, state: State) -> None:
        if job.kind == "cell":
            self.settled(job, state)
            return
        self._dense[job.name] = state.status == "done"
        if state.status == "failed":
            for cell in [cell for cell in self._waiting if cell.needs == job.name]:
                self._waiting.remove(cell)
                self._fail_along(cell, job.name)

    def _fail_along(self, cell: Job, dense: str) -> None:
        why = (f"its dense training {dense} failed:", *read_state(self.folder.state(dense)).error)
        state = self._end(cell, self._state(cell).model_copy(update={"error": why}), "failed")
        self.tell("failed", cell, state)
        self._settle(cell, state)

    def _state(self, job: Job) -> State:
        try:
            return read_state(self.folder.state(job.name))
        except FileFormatError:  # it only tells of the past
            return State()


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {-code}" + (", perhaps for lack of memory" if code == -9 else "")
