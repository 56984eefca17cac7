"""Image folders: train/<class>/… and test/<class>/…, in a directory or an archive, decoded into two uint8 arrays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from prunus.data.dataset import ImageData, make_image_data
from prunus.data.decode import Decoded, Encoded, decode_all
from prunus.data.members import Member, shown
from prunus.data.progress import progress_bar, say
from prunus.errors import DataError

_SPLITS = ("train", "test")
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_MAX_IMAGE_FILE_BYTES = 64 * 2**20
_LAYOUT = "an image folder holds train/<class>/<image> and test/<class>/<image>, at most under one top folder"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class _Place:
    """Where an image belongs, from its path."""

    split: str
    label: str


def read_image_folder(
    source: Path, members: Iterable[Member], *, skip_bad_images: bool = False, progress: bool = True
) -> ImageData:
    """Decode an image folder; its classes are the sorted folder names, its images are sorted by path.

    The set is grey (one channel) if every image is, else RGB with grey images repeated. All images must have one size.

    Args:
        source: the directory or archive, for its name and for messages.
        members: its files, each read at most once and in order.
        skip_bad_images: leave out unreadable and odd-sized images, and say how many on stderr, in place of an error.
        progress: show a progress bar if it takes over two seconds.

    Raises:
        DataError: no images, other classes in test than in train, or a bad image, named with what was expected.
    """
    good: list[Decoded] = []
    bad: list[str] = []
    used_bytes, limit_bytes = 0, _memory_limit()
    with progress_bar(f"Reading {shown(source.name)}", show=progress) as advance:
        for image in decode_all(_encoded(source, members)):
            advance()
            if image.pixels is None:
                bad.append(f"{shown('/'.join(image.parts))}: {shown(image.reason)}")
                if not skip_bad_images:
                    raise DataError(f"{source} holds an image that cannot be read: {bad[0]}. {_HOW_TO_SKIP}")
                continue
            used_bytes += image.pixels.nbytes
            if used_bytes > limit_bytes:
                raise DataError(
                    f"{source}: the decoded images need more than {limit_bytes / 2**30:.1f} GiB, half of this "
                    "machine's memory; make the images smaller or fewer"
                )
            good.append(image)
    good.sort(key=lambda image: image.parts)
    good, odd = _one_size(source, good, skip_bad_images)
    bad += odd
    if bad:
        say(f"{source}: skipped {len(bad)} bad image{'s' * (len(bad) > 1)}, first {bad[0]}")
    return _assemble(source, good, len(bad))


_HOW_TO_SKIP = "Repair or remove it, or leave such images out with --skip-bad-images (in Python skip_bad_images=True)"


def _encoded(source: Path, members: Iterable[Member]) -> Iterator[Encoded]:
    """Read the members that are images; everything else (notes, thumbnails, hidden files) is passed over."""
    seen: set[tuple[str, ...]] = set()
    for member in members:
        if not _is_image(member.parts):
            continue
        name = shown("/".join(member.parts))
        if member.size > _MAX_IMAGE_FILE_BYTES:
            raise DataError(f"{source} holds '{name}' of {member.size} bytes, too much for an image; remove it")
        if member.parts in seen:
            raise DataError(f"{source} holds '{name}' twice; pack it again")
        seen.add(member.parts)
        yield Encoded(member.parts, member.read())


def _is_image(parts: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in _SUFFIXES if parts else False


def _place(source: Path, parts: tuple[str, ...]) -> _Place:
    """Find split and class in a path, which may begin with one top folder."""
    for inner in (parts, parts[1:]):
        if len(inner) >= 3 and inner[0] in _SPLITS:
            return _Place(inner[0], inner[1])
    raise DataError(f"{source} holds '{shown('/'.join(parts))}', which is in no class of train or test; {_LAYOUT}")


def _one_size(source: Path, images: list[Decoded], skip: bool) -> tuple[list[Decoded], list[str]]:
    """Part the images of the most common size from the others, which are described."""
    sizes = Counter(_size(image) for image in images)
    if not sizes:
        raise DataError(f"{source} holds no images; {_LAYOUT}, as one of {', '.join(sorted(_SUFFIXES))}")
    usual, count = sizes.most_common(1)[0]
    odd = [
        f"{shown('/'.join(image.parts))}: found {_size(image)} pixels, expected {usual}, the size of {count:,} of "
        f"{len(images):,} images"
        for image in images
        if _size(image) != usual
    ]
    if odd and not skip:
        raise DataError(f"{source} holds {len(odd):,} images of an odd size, first {odd[0]}. {_HOW_TO_SKIP}")
    return [image for image in images if _size(image) == usual], odd


def _size(image: Decoded) -> str:
    assert image.pixels is not None
    height, width = image.pixels.shape[:2]
    return f"{width}×{height}"


def _assemble(source: Path, images: list[Decoded], skipped: int) -> ImageData:
    places = [_place(source, image.parts) for image in images]
    classes = {split: sorted({place.label for place in places if place.split == split}) for split in _SPLITS}
    _check_classes(source, classes)
    colour = any(image.pixels is not None and image.pixels.ndim == 3 for image in images)
    names = classes["train"]
    parts = {
        split: (
            _stack([image.pixels for image, place in zip(images, places, strict=True) if place.split == split], colour),
            np.array([names.index(place.label) for place in places if place.split == split]),
        )
        for split in _SPLITS
    }
    return make_image_data(display_name(source, names), names, parts["train"], parts["test"], skipped)


def _check_classes(source: Path, classes: dict[str, list[str]]) -> None:
    for split, other in (_SPLITS, _SPLITS[::-1]):
        if not classes[split]:
            raise DataError(f"{source} holds no images in {split}; {_LAYOUT}")
        missing = [shown(name) for name in classes[other] if name not in classes[split]]
        if missing:
            raise DataError(
                f"{source}: {split} lacks classes that {other} has: {', '.join(missing[:5])}; "
                "both need the same class folders, with images in each"
            )
    strange = [name for name in classes["train"] if not name.isprintable()]
    if strange:
        raise DataError(f"{source}: the class name '{shown(strange[0])}' has control characters; rename its folder")


def _stack(images: list[np.ndarray | None], colour: bool) -> np.ndarray:
    """Stack (H, W) and (H, W, 3) images to (N, C, H, W), C = 3 if `colour`."""
    height, width = next(image.shape[:2] for image in images if image is not None)
    stacked = np.empty((len(images), 3 if colour else 1, height, width), dtype=np.uint8)
    for target, image in zip(stacked, images, strict=True):
        if image is not None:
            target[:] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    return stacked


def display_name(source: Path, classes: list[str]) -> str:
    """Name a data set after its file; the JPEG copy of CIFAR-10 says that it is one, its figures being its own."""
    name = source.resolve().name
    for suffix in (".tar.xz", ".tar.gz", ".tgz", ".txz", ".tar", ".zip"):
        name = name.removesuffix(suffix)
    if name.startswith("cifar10-jpeg") and tuple(classes) == CIFAR10_CLASSES:
        return "CIFAR-10 (JPEG)"
    return shown(name)


def _memory_limit() -> int:
    """Half of the machine's memory in bytes; 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30
