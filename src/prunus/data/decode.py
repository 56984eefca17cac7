"""Decode image files in a pool of threads, with bounded memory.

The headers are read first, one by one, so that an image's size in memory is known, and can be refused, before a pixel
of it is unpacked; the pixels are then decoded in the pool, where Pillow does not hold Python's lock.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from prunus.data.scaling import covering

MAX_IMAGE_PIXELS = 4096 * 4096
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
_GREY = ("L", "1", "LA", "La")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # more than 8 bits: converting would clip them
_BATCH_IMAGES = 64  # one small image takes a tenth of a millisecond, less than handing it over
_BATCH_BYTES = 32 * 2**20
# What Pillow raises on damaged files. SyntaxError is its word for a broken PNG.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
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


@dataclass(frozen=True)
class _Opened:
    """An image whose header has been read: a lazy picture of `size_bytes` decoded, or the reason why there is none."""

    parts: tuple[str, ...]
    picture: Image.Image | None
    size_bytes: int = 0
    reason: str = ""


def decode_all(images: Iterable[Encoded], side: int | None = None) -> Generator[Decoded]:
    """Decode images, in order: grey ones to (H, W), all others to RGB (H, W, 3); transparency is dropped.

    With `side`, each is scaled to cover side × side pixels, and the middle is taken.

    Close it if it is not read to the end: until then its threads live and warnings are off.
    """
    workers = os.cpu_count() or 1
    waiting: deque[Future[list[Decoded]]] = deque()
    # Pillow warns of odd metadata, which no one can act on here. Filters belong to all threads, so they are set once.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        for batch in _batches(images):
            waiting.append(pool.submit(_decode_batch, batch, side))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _batches(images: Iterable[Encoded]) -> Iterator[list[_Opened]]:
    batch: list[_Opened] = []
    size_bytes = 0
    for image in images:
        opened = _open(image)
        batch.append(opened)
        size_bytes += opened.size_bytes + len(image.content)
        if len(batch) == _BATCH_IMAGES or size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _open(image: Encoded) -> _Opened:
    try:
        picture = Image.open(io.BytesIO(image.content), formats=_FORMATS)
    except _UNREADABLE as error:
        return _Opened(image.parts, None, reason=_reason(error))
    width, height = picture.size
    if width * height > MAX_IMAGE_PIXELS:
        return _Opened(image.parts, None, reason=f"{width}×{height} pixels are too many to be read")
    if picture.mode in _DEEP:
        return _Opened(image.parts, None, reason=f"it has more than 8 bits a channel (Pillow's mode {picture.mode})")
    return _Opened(image.parts, picture, width * height * (1 if picture.mode in _GREY else 3))


def _decode_batch(images: Sequence[_Opened], side: int | None) -> list[Decoded]:
    return [_decode(image, side) for image in images]


def _decode(image: _Opened, side: int | None) -> Decoded:
    if image.picture is None:
        return Decoded(image.parts, None, image.reason)
    try:
        with image.picture as picture:
            mode = "L" if picture.mode in _GREY else "RGB"
            converted = picture if picture.mode == mode else picture.convert(mode)
            if side is not None:
                converted = covering(converted, side, side)
            shape = (converted.height, converted.width, 3)[: 2 if mode == "L" else 3]
            return Decoded(image.parts, np.frombuffer(converted.tobytes(), dtype=np.uint8).reshape(shape))
    except _UNREADABLE as error:
        return Decoded(image.parts, None, _reason(error))


def _reason(error: BaseException) -> str:
    # Pillow names the file in its message, which here is the address of a buffer.
    return str(error) if str(error) and "BytesIO" not in str(error) else "not an image that Pillow can read"
