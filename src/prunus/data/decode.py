"""Decode image files in a pool of threads, bounded in memory, with a progress bar when it takes long."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_IMAGE_PIXELS = 4096 * 4096
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
_GREY = ("L", "1", "LA")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # more than 8 bits: converting would clip them
_BATCH = 64  # images a task: one alone takes a tenth of a millisecond
# What Pillow's decoders raise on damaged files.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Encoded:
    """An image file in memory and its path inside the data set."""

    parts: tuple[str, ...]
    content: bytes


@dataclass(frozen=True)
class Decoded:
    """A decoded image: uint8 pixels (H, W) or (H, W, 3), or the reason why there are none."""

    parts: tuple[str, ...]
    pixels: np.ndarray | None
    reason: str = ""


def decode(image: Encoded) -> Decoded:
    """Decode one image: grey ones to (H, W), all others to (H, W, 3); transparency is dropped."""
    try:
        with Image.open(io.BytesIO(image.content), formats=_FORMATS) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                return Decoded(image.parts, None, f"{picture.width}×{picture.height} pixels are too many to be read")
            if picture.mode in _DEEP:
                return Decoded(image.parts, None, f"it has more than 8 bits a channel (mode {picture.mode})")
            mode = "L" if picture.mode in _GREY else "RGB"
            converted = picture if picture.mode == mode else picture.convert(mode)
            return Decoded(image.parts, np.array(converted, dtype=np.uint8))
    except _UNREADABLE as error:
        reason = str(error) if str(error) and "BytesIO" not in str(error) else "not an image that Pillow can read"
        return Decoded(image.parts, None, reason)


def decode_all(images: Iterable[Encoded]) -> Iterator[Decoded]:
    """Decode images in a pool of threads; results come in order, and a few batches at most are held."""
    workers = os.cpu_count() or 1
    waiting: deque[Future[list[Decoded]]] = deque()
    # Pillow warns of odd metadata, which no one can act on here. (Filters belong to all threads, so they are set once.)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        for batch in _batches(images):
            waiting.append(pool.submit(_decode_batch, batch))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _decode_batch(images: Sequence[Encoded]) -> list[Decoded]:
    return [decode(image) for image in images]


def _batches(images: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    batch: list[Encoded] = []
    for image in images:
        batch.append(image)
        if len(batch) == _BATCH or sum(len(each.content) for each in batch) > 2**22:
            yield batch
            batch = []
    if batch:
        yield batch
