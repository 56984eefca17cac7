"""Where in the user's code an operation was called."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent / "_")[:-1]
_OWN = str(Path(__file__).parent / "_")[:-1]


@dataclass(frozen=True)
class Place:
    """A line of code: its file, its number and the function's name."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{'/'.join(Path(self.file).parts[-3:])}:{self.line}, in {self.function}"


def place_of_call() -> Place:
    """Return the innermost line that is neither torch's nor this package's."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _OWN, "<")):
            break
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def place_of_error(error: BaseException) -> Place | None:
    """Return the innermost line that an error was raised through that is neither torch's nor this package's."""
    found = None
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith((_TORCH, _OWN, "<")):
            found = Place(code.co_filename, trace.tb_lineno, code.co_name)
        trace = trace.tb_next
    return found
