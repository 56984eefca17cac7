"""CIFAR-10 and CIFAR-100 as their author publishes them: the binary and the Python version, packed or unpacked.

A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images; https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunus.data.dataset import ImageData, make_image_data
from prunus.data.members import Member
from prunus.data.plain_pickle import PickledArray, read_plain_pickle
from prunus.errors import DataError

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """The files of one version of a data set, below the folder of its archive."""

    name: str
    class_count: int
    train: tuple[str, ...]
    test: str
    meta: str
    label_bytes: int = 0  # binary version: bytes before an image, the last of which is the label; 0: Python version
    label_key: bytes = b""  # Python version: where a batch has its labels
    names_key: bytes = b""  # Python version: where the meta file has the class names


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = {
    "cifar-10-batches-bin": Layout(
        "CIFAR-10", 10, tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", "batches.meta.txt", label_bytes=1
    ),
    "cifar-10-batches-py": Layout(
        "CIFAR-10", 10, _BATCHES, "test_batch", "batches.meta", label_key=b"labels", names_key=b"label_names"
    ),
    "cifar-100-binary": Layout("CIFAR-100", 100, ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
    "cifar-100-python": Layout(
        "CIFAR-100", 100, ("train",), "test", "meta", label_key=b"fine_labels", names_key=b"fine_label_names"
    ),
}


def cifar_layout(parts: tuple[str, ...]) -> Layout | None:
    """Tell by its path whether a file belongs to one of the official archives."""
    return LAYOUTS.get(parts[-2]) if len(parts) >= 2 else None


def read_cifar(source: Path, layout: Layout, members: Iterable[Member]) -> ImageData:
    """Read a CIFAR archive or its unpacked folder; CIFAR-100 with its 100 fine classes, in the official order.

    Raises:
        DataError: a file is missing, cut short, or (Python version) a pickle of more than arrays and containers.
    """
    wanted = {*layout.train, layout.test, layout.meta}
    files: dict[str, bytes] = {}
    for member in members:
        if cifar_layout(member.parts) == layout and member.parts[-1] in wanted:
            if member.parts[-1] in files:
                raise DataError(f"{source} holds {member.parts[-1]} twice; get the official archive again")
            files[member.parts[-1]] = member.read()
    missing = sorted(wanted - files.keys())
    if missing:
        raise DataError(f"{source} lacks {', '.join(missing)} of {layout.name}; get the official archive again")
    read_batch = _read_binary if layout.label_bytes else _read_python
    batches = {}
    name = layout.meta
    try:
        classes = _class_names(layout, files[name])
        for name in (*layout.train, layout.test):
            batches[name] = read_batch(layout, files.pop(name))
    except DataError as error:
        raise DataError(f"{name} in {source} cannot be used: {error}; get the official archive again") from error
    train = [batches[name] for name in layout.train]
    return make_image_data(
        layout.name,
        classes,
        (np.concatenate([images for images, _ in train]), np.concatenate([labels for _, labels in train])),
        batches[layout.test],
    )


def _read_binary(layout: Layout, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read records of label bytes and 3,072 pixels: images (N, 3, 32, 32) uint8, labels (N,)."""
    record = layout.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(f"{len(content)} bytes are not a whole number of records of {record} bytes, so it is cut short")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    images = np.ascontiguousarray(records[:, layout.label_bytes :]).reshape(-1, *_SHAPE)
    return images, _checked_labels(layout, records[:, layout.label_bytes - 1].tolist())


def _read_python(layout: Layout, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read a pickled dict of `data`, an array (N, 3072), and a list of labels."""
    batch = read_plain_pickle(content)
    pixels = _entry(batch, b"data")
    labels = _entry(batch, layout.label_key)
    array = pixels.array if isinstance(pixels, PickledArray) else None
    if array is None or array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != _PIXELS or not len(array):
        raise DataError(f"its data is not a uint8 array of N × {_PIXELS} pixels")
    if not isinstance(labels, list) or len(labels) != len(array):
        raise DataError(f"it has no list of {len(array)} labels")
    # A copy: np.frombuffer's arrays cannot be written to, which torch warns of.
    return np.array(array, order="C").reshape(-1, *_SHAPE), _checked_labels(layout, labels)


def _entry(batch: object, key: bytes) -> object:
    """Look up a key that is bytes in a pickle by Python 2, str in one by Python 3."""
    if not isinstance(batch, dict):
        raise DataError("it is not a dict")
    for spelling in (key, key.decode()):
        if spelling in batch:
            return batch[spelling]
    raise DataError(f"it has no entry '{key.decode()}'")


def _checked_labels(layout: Layout, labels: Sequence[object]) -> np.ndarray:
    for position, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < layout.class_count:
            expected = f"a number from 0 to {layout.class_count - 1}"
            raise DataError(f"the label of image {position} is {_brief(label)}, expected {expected}")
    return np.array(labels, dtype=np.int64)


def _brief(value: object) -> str:
    # Not repr: that of lists which hold one list many times can be without end.
    return str(value)[:40] if isinstance(value, int) else f"a {type(value).__name__}"


def _class_names(layout: Layout, content: bytes) -> list[str]:
    entries = content.splitlines() if layout.label_bytes else _entry(read_plain_pickle(content), layout.names_key)
    names = [
        name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        for name in (entries if isinstance(entries, list) else [])
        if name and isinstance(name, bytes | str)
    ]
    if len(names) != layout.class_count or not all(name.isprintable() for name in names):
        raise DataError(f"it has {len(names)} proper class names, expected {layout.class_count}")
    return names
