"""What became of every job, one JSON file each, and the lock that keeps a second sweep out."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from prunus.errors import FileFormatError, RunError
from prunus.files import atomic_write_json, read_json

Status = Literal["pending", "running", "done", "failed", "no data"]


class State(BaseModel):
    """How far a job is.

    Attributes:
        attempts: processes that ended by themselves, well or not; those stopped or killed with the sweep are none.
        seconds: spent on it in all processes whose end was seen.
        error: the last lines of the attempt that failed last.
        pid: of the process that works on it.
    """

    model_config = ConfigDict(frozen=True)

    status: Status = "pending"
    attempts: int = 0
    seconds: float = 0.0
    error: tuple[str, ...] = ()
    pid: int | None = None


def read_state(path: Path) -> State:
    """Read a job's state; one that was never written is pending.

    Raises:
        FileFormatError: the file is none of ours.
    """
    if not path.exists():
        return State()
    try:
        return State.model_validate(read_json(path, "state of a cell"))
    except ValidationError as error:
        raise FileFormatError(
            f"the state of a cell {path} does not fit: {error.errors()[0]['msg']}; delete it"
        ) from None


def write_state(path: Path, state: State) -> None:
    """Write a job's state, whole or not at all."""
    atomic_write_json(path, state.model_dump())


@contextlib.contextmanager
def only_sweep(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system drops when the process ends, however it ends.

    Raises:
        RunError: another sweep works in the folder, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+")
    except OSError as error:
        raise RunError(f"cannot use the folder {path}: {error.strerror}; choose another with --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(32).strip() or "another"
            raise RunError(
                f"the folder {path} is in use by a sweep, process {holder}. Wait for it to end, or choose another with "
                "--out."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
