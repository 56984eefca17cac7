"""How a run is asked to end before it is done: by Ctrl-C, by SIGTERM, or because its time is over."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from prunus.errors import ConfigError

TIME_IS_OVER = 3
"""Exit code of a command that stopped at a checkpoint because of --max-minutes."""

_WHY = {signal.SIGINT: "interrupted", signal.SIGTERM: "asked to end (SIGTERM)"}
_AFTER_A_SIGNAL = 128  # what a shell adds to the signal's number
_ECHO = 10.0  # seconds
_WAIT = "\nstopping after the step under way; once more (Ctrl-C) ends at once\n"


class Stopped(BaseException):
    """A run ended before it was done because it was asked to; nothing is lost. No PrunusError: nothing went wrong.

    Attributes:
        why: the reason in a few words.
        exit_code: 130 after SIGINT, 143 after SIGTERM, 3 where the time was over.
    """

    def __init__(self, why: str, exit_code: int) -> None:
        super().__init__(why)
        self.why = why
        self.exit_code = exit_code


class Stopping:
    """Knows whether a run has been asked to end; as a context it takes SIGINT and SIGTERM.

    A signal raises Stopped at once, wherever the program is. Within `postponed` it waits until `check` is called, so
    that a training can finish its step and write a checkpoint; a second signal does not wait. Signals that are ignored
    stay so (as a shell has it for what runs in its background), and in threads beside the main one none are taken.

    Args:
        max_minutes: minutes from now on, above 0, after which `due` is True; None for any time.

    Raises:
        ConfigError: `max_minutes` is no positive number.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        if max_minutes is not None and not 0 < max_minutes < math.inf:
            raise ConfigError(f"--max-minutes is {max_minutes:g}, and should be above 0, e.g. --max-minutes 9.")
        self._minutes = max_minutes
        self._end = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._received: signal.Signals | None = None
        self._postponing = False
        self._again_after = 0.0
        self._since = 0.0
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in _WHY:
                before = signal.getsignal(number)
                if before is not None and before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    @property
    def due(self) -> bool:
        """Whether it is time to leave."""
        return self._received is not None or time.monotonic() >= self._end

    def check(self) -> None:
        """Raise Stopped where it is time to leave."""
        if self._received is not None:
            raise _stopped_by(self._received)
        if self.due:
            raise Stopped(f"the time is over (--max-minutes {self._minutes:g})", TIME_IS_OVER)

    def stop_with_others(self) -> None:
        """Be asked to end because another process of the same run is."""
        if not self.due:
            self._received = signal.SIGTERM

    def expect_signals_twice(self) -> None:
        """Take the same signal again soon for an echo: a launcher passes on what the terminal has sent already."""
        self._again_after = _ECHO

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Let signals wait: for a `check` within, or for the end of the block."""
        within, self._postponing = self._postponing, True
        try:
            yield
        finally:
            self._postponing = within
        if self._received is not None and not within:
            raise _stopped_by(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self._received is not None and time.monotonic() - self._since >= self._again_after
        self._since = time.monotonic() if self._received is None else self._since
        self._received = signal.Signals(number)
        if not self._postponing or again:
            raise _stopped_by(self._received)
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _WAIT.encode())  # print may be interrupted here


def _stopped_by(number: signal.Signals) -> Stopped:
    return Stopped(_WHY[number], _AFTER_A_SIGNAL + number)
