"""Where decoded images lie: in memory, and beyond a limit on the disk, where the system reads what is asked for."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prunus.errors import DataError
from prunus.limits import advice

_SEGMENT_BYTES = 128 * 2**20  # one file on the disk for so much, since every file that is mapped costs the system


class Room:
    """Memory for `limit_bytes` of pixels; what is more goes into files in `folder`, mapped into memory.

    The files have no name any more once they are mapped, so that nothing is left of them however the process ends. They
    are reserved before anything is written: a full disk is an error, not a crash.
    """

    def __init__(self, limit_bytes: float, folder: Path, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._limit, self._folder, self._segment_bytes = limit_bytes, folder, segment_bytes
        self._used = 0
        self._segment = np.empty(0, np.uint8)

    @property
    def full(self) -> bool:
        """Whether there is more than the memory may hold."""
        return self._used > self._limit

    def keep(self, pixels: np.ndarray) -> np.ndarray:
        """Take pixels in: the array itself, or where memory is full an equal one on the disk."""
        self._used += pixels.nbytes
        if not self.full:
            return pixels
        if len(self._segment) < pixels.nbytes:
            self._segment = disk_array((max(self._segment_bytes, pixels.nbytes),), self._folder)
        place, self._segment = self._segment[: pixels.nbytes], self._segment[pixels.nbytes :]
        place[:] = pixels.ravel()
        return place.reshape(pixels.shape)

    def empty(self, shape: Sequence[int]) -> np.ndarray:
        """Make an array of uint8 to be filled with what was taken in."""
        return disk_array(shape, self._folder) if self.full else np.empty(shape, np.uint8)


def disk_array(shape: Sequence[int], folder: Path) -> np.ndarray:
    """Make an array of uint8 whose bytes lie in a nameless file in `folder`.

    Raises:
        DataError: there is not enough room on the disk, or the folder cannot be written to.
    """
    size = math.prod(shape)
    path = folder / f".images-{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            path.unlink()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS: the zeros are written, which takes longer
                for start in range(0, size, _SEGMENT_BYTES):
                    file.write(bytes(min(_SEGMENT_BYTES, size - start)))
                file.flush()
            return np.memmap(file, np.uint8, "r+", shape=tuple(shape))
    except OSError as error:
        raise DataError(
            f"{size / 1e9:.3g} GB of decoded images are more than the memory that they may take, and {folder} has no "
            f"room for them: {error.strerror}; {advice(error)}, or name another with --cache-dir FOLDER"
        ) from error


def half_of_the_memory() -> int:
    """Half of the machine's memory in bytes; 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30
