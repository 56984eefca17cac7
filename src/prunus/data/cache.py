"""Keep a decoded data set as safetensors beside a checksum, so that it is decoded once.

A cache file is only ever a shortcut: one that is damaged, of an older format or unwritable is said on stderr and worked
around, and its name depends on the content of what was decoded, so that it cannot be out of date.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prunus.data.dataset import ImageData
from prunus.data.members import files_below
from prunus.data.progress import say
from prunus.errors import DataError, FileFormatError, RunError
from prunus.files import file_sha256, load_tensors, map_tensors, save_large_tensors, save_tensors

_FORMAT = "1"  # raise it when the same file would be decoded to something else
_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def default_cache_dir() -> Path:
    """Tell where decoded and downloaded data goes: $PRUNUS_CACHE, or the platform's own place for caches."""
    if chosen := os.environ.get("PRUNUS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "prunus" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "prunus"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunus"


def content_key(source: Path) -> str:
    """Hash what a data set is made of: an archive's bytes, or a directory's paths, sizes and times; and its name."""
    try:
        content = _listing_sha256(source) if source.is_dir() else file_sha256(source)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from error
    return hashlib.sha256("\0".join((_FORMAT, source.resolve().name, content)).encode(errors="replace")).hexdigest()


def _listing_sha256(folder: Path) -> str:
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for path in files_below(folder):
        status = path.stat()
        digest.update(os.fsencode(path.relative_to(folder)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def cached(
    source: Path,
    cache_dir: Path,
    build: Callable[[], ImageData],
    *,
    skip_bad_images: bool,
    memory_bytes: float,
    image_size: int | None = None,
) -> ImageData:
    """Give the decoded `source`, scaled to `image_size`, from the cache, or build it and put it there.

    A cached set from which bad images were left out counts only where that is allowed now. One of more than
    `memory_bytes` stays on the disk.
    """
    size = "" if image_size is None else f"-{image_size}"
    path = cache_dir / f"images-{content_key(source)[:40]}{size}.safetensors"
    known = _look_up(path, source, memory_bytes)
    if known and (not known.skipped or skip_bad_images):
        if known.skipped:
            say(f"{source}: {known.skipped} bad image{'s' * (known.skipped > 1)} left out")
        return known
    data = build()
    try:
        _save(path, data)
    except RunError as error:
        say(f"the decoded images are not kept for the next time: {error}, or set PRUNUS_CACHE")
        return data
    # What was decoded onto the disk takes its room until it is let go.
    return _look_up(path, source, memory_bytes) or data if data.on_disk else data


def _look_up(path: Path, source: Path, memory_bytes: float) -> ImageData | None:
    try:
        return _load(path, path.stat().st_size > memory_bytes) if path.exists() else None
    except (FileFormatError, OSError) as error:
        say(f"{error}; {source} is decoded again")
        return None


def _save(path: Path, data: ImageData) -> None:
    metadata = {
        "name": data.name,
        "classes": json.dumps(data.classes),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "skipped": json.dumps(data.skipped),
    }
    save = save_large_tensors if data.on_disk else save_tensors
    save(path, {name: getattr(data, name) for name in _TENSORS}, metadata)


def _load(path: Path, on_disk: bool) -> ImageData:
    tensors, metadata = (map_tensors if on_disk else load_tensors)(path, what="image cache")
    try:
        text: dict[str, Any] = {key: json.loads(metadata[key]) for key in ("classes", "mean", "std", "skipped")}
        data = ImageData(
            name=metadata["name"],
            classes=tuple(text["classes"]),
            mean=tuple(text["mean"]),
            std=tuple(text["std"]),
            skipped=text["skipped"],
            on_disk=on_disk,
            **{name: tensors[name] for name in _TENSORS},
        )
        sound = _is_sound(data)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"the image cache {path} lacks something or is mistyped: {error!r:.100}") from error
    if not sound:
        raise FileFormatError(f"the image cache {path} holds something else than a data set")
    return data


def _is_sound(data: ImageData) -> bool:
    """Check everything: a file with a right checksum may still have been made by someone else."""
    parts = ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
    return (
        all(
            images.dtype == torch.uint8
            and labels.dtype == torch.int64
            and images.ndim == 4
            and images.shape[1:] == data.train_images.shape[1:]
            and labels.shape == (len(images),)
            and len(images) > 0
            and 0 <= int(labels.min()) <= int(labels.max()) < len(data.classes)
            for images, labels in parts
        )
        and all(isinstance(name, str) and name.isprintable() for name in (data.name, *data.classes))
        and len(data.mean) == len(data.std) == data.train_images.shape[1]
        and all(isinstance(value, float) and math.isfinite(value) for value in data.mean)
        and all(isinstance(value, float) and math.isfinite(value) and value > 0 for value in data.std)
        and isinstance(data.skipped, int)
    )
