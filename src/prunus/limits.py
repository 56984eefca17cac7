"""What the machine refuses, memory or disk, said in words instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

from prunus.errors import RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_MEMORY = (  # how torch's allocators, which raise a plain RuntimeError on the CPU, and its libraries say it
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a memory object",  # oneDNN
    "std::bad_alloc",
)


def advice(error: OSError) -> str:
    """Say what to do about a file that cannot be written."""
    if error.errno in _FULL:
        return "the disk is full or a quota is used up: free some space, then type the same command again"
    if error.errno in _FORBIDDEN:
        return "choose a folder that you may write to, or change its permissions"
    return "free the place or choose another folder"


@contextlib.contextmanager
def said_in_words(memory_advice: Callable[[], str]) -> Iterator[None]:
    """Turn what the machine refuses within the block into a RunError.

    Args:
        memory_advice: asked for a sentence on what to try, where memory is short.

    Raises:
        RunError: memory ran out, or a file could not be written; the message says which, and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise _short_of_memory(error, memory_advice()) from error
        if error.errno not in _FULL | _FORBIDDEN:
            raise
        where = f"cannot write {error.filename}" if error.filename else "cannot write a file"
        raise RunError(f"{where}: {error.strerror}; {advice(error)}") from error
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(said in str(error).lower() for said in _NO_MEMORY):
            raise
        raise _short_of_memory(error, memory_advice()) from error


def _short_of_memory(error: BaseException, hint: str) -> RunError:
    first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return RunError(f"out of memory ({first_line:.160}). {hint}")
