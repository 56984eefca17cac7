"""The last few files of one kind: `a.safetensors` is the newest, `a.1.safetensors` the one before, and so on."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prunus.errors import FileFormatError, RunError

_SUFFIX = ".safetensors"

Content = TypeVar("Content")


def write_newest(path: Path, kept: int, write: Callable[[Path], None]) -> None:
    """Write a file at `path`, and keep `kept` of them with it; those before move on by one number.

    The new file is whole before the others move: where it cannot be written, nothing has changed.

    Raises:
        RunError: the file cannot be written, or those before cannot be moved.
    """
    new = _numbered(path, "new")
    write(new)
    try:
        for number in range(kept - 1, 0, -1):
            if (earlier := _earlier(path, number - 1)).exists():
                earlier.replace(_earlier(path, number))
        new.replace(path)
    except OSError as error:
        raise RunError(f"cannot move {error.filename}: {error.strerror}; type the same command again") from error


def read_newest(path: Path, read: Callable[[Path], Content], say: Callable[[str], None]) -> tuple[Path, Content] | None:
    """Read the newest file that is sound, and say which were not; None where there is no file at all.

    Raises:
        FileFormatError: not one of them is sound.
    """
    damaged: list[str] = []
    for file in _existing(path):
        try:
            content = read(file)
        except FileFormatError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            say(f"{problem}; going on from the one before, {file.name}")
        return file, content
    if damaged:
        raise FileFormatError(f"{'; '.join(damaged)}; {way_out(path)}")
    return None


def way_out(path: Path) -> str:
    """Say what to delete, so that what the files at `path` are of begins anew."""
    names = [str(file) for file in _existing(path)]
    return f"delete {' and '.join(names)} to start this training again"


def _existing(path: Path) -> Iterator[Path]:
    """Give the files that are there; the newest may be missing, where a process was killed between two renames."""
    older = path.parent.glob(f"{glob.escape(path.name.removesuffix(_SUFFIX))}.*{_SUFFIX}")
    numbers = [file.name.removesuffix(_SUFFIX).rpartition(".")[2] for file in older]
    for number in sorted({0, *(int(number) for number in numbers if number.isdigit())}):
        if (file := _earlier(path, number)).exists():
            yield file


def _earlier(path: Path, number: int) -> Path:
    return _numbered(path, str(number)) if number else path


def _numbered(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name.removesuffix(_SUFFIX)}.{part}{_SUFFIX}")
