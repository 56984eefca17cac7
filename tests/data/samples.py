"""Tiny data sets, made anew by each test: image folders as trees and archives, CIFAR in its official layouts."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(value: int, *, size: tuple[int, int] = (6, 4), mode: str = "RGB", suffix: str = "png") -> bytes:
    """Encode an image of (width, height) whose pixels all differ in a way that `value` decides."""
    width, height = size
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = (np.arange(height * width * channels) * 7 + value).astype(np.uint8).reshape(height, width, channels)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode if channels != 1 else None).save(buffer, suffix)
    return buffer.getvalue()


def pixels_of(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def folder_files(top: str = "", *, train: int = 3, test: int = 2, mode: str = "RGB") -> dict[str, bytes]:
    """An image folder with the classes ant and bee, as paths and contents."""
    return {
        f"{top}{split}/{name}/{index}.png": picture(100 * label + 10 * index + (split == "test"), mode=mode)
        for split, count in (("train", train), ("test", test))
        for label, name in enumerate(("ant", "bee"))
        for index in range(count)
    }


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: Mapping[str, bytes], compression: str = "") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            add_tar_file(archive, name, content)
    return path


def add_tar_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def python2_pickle(batch: Mapping[bytes, object]) -> bytes:
    """Pickle a CIFAR batch as Python 2 did, protocol 2, where every string is a string of bytes."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def encode(value: object) -> bytes:
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little", signed=True)
        if isinstance(value, list):
            return b"](" + b"".join(map(encode, value)) + b"e"
        assert isinstance(value, np.ndarray)
        rows, columns = (b"J" + size.to_bytes(4, "little") for size in value.shape)
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
            + b"(K\x01" + rows + columns + b"\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
            + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(value.tobytes()) + b"tb"
        )  # fmt: skip

    items = b"".join(encode(key) + encode(value) for key, value in batch.items())
    return b"\x80\x02}q\x00(" + items + b"u."


def cifar_arrays(classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3072), dtype=np.uint8), random.integers(0, classes, count)


def cifar_files(version: str, *, python3: bool = False) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files of an official archive with a few images, their training images (N, 3, 32, 32) and labels (N,)."""
    folder, classes, train = {
        "cifar10-binary": ("cifar-10-batches-bin", 10, [f"data_batch_{number}" for number in range(1, 6)]),
        "cifar10-python": ("cifar-10-batches-py", 10, [f"data_batch_{number}" for number in range(1, 6)]),
        "cifar100-binary": ("cifar-100-binary", 100, ["train"]),
        "cifar100-python": ("cifar-100-python", 100, ["train"]),
    }[version]
    names = [f"class {number}".encode() for number in range(classes)]
    test = "test_batch" if classes == 10 else "test"
    arrays = {name: cifar_arrays(classes, 3, seed) for seed, name in enumerate([*train, test])}
    dump = python2_pickle if not python3 else lambda batch: pickle.dumps(dict(batch), protocol=4)
    files = {}
    for name, (pixels, labels) in arrays.items():
        if version.endswith("python"):
            key = b"labels" if classes == 10 else b"fine_labels"
            files[f"{folder}/{name}"] = dump({b"data": pixels, key: labels.tolist(), b"batch_label": b"one of many"})
        else:
            coarse = [] if classes == 10 else [np.zeros(len(labels))]
            records = np.column_stack([*coarse, labels, pixels]).astype(np.uint8)
            files[f"{folder}/{name}.bin"] = records.tobytes()
    if version.endswith("python"):
        meta = "batches.meta" if classes == 10 else "meta"
        key = b"label_names" if classes == 10 else b"fine_label_names"
        files[f"{folder}/{meta}"] = dump({key: names})
    else:
        meta = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
        files[f"{folder}/{meta}"] = b"\n".join(names) + b"\n\n"
    files[f"{folder}/readme.html"] = b"<html>"
    pixels = np.concatenate([arrays[name][0] for name in train]).reshape(-1, 3, 32, 32)
    return files, pixels, np.concatenate([arrays[name][1] for name in train])
