"""Work without Python's garbage collector: it would look through what grows again and again, and find no garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector rest while the context is open, unless it rests already.

    A trace of a thousand layers holds a million objects; to look through them takes longer than to make them.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
