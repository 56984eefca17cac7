"""Image folders: train/<class>/… and test/<class>/…, in a directory or an archive, decoded into two uint8 arrays."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from prunus.data.dataset import ImageData, make_image_data
from prunus.data.decode import Decoded, Encoded, decode_all
from prunus.data.members import Member, shown
from prunus.data.progress import Advance, progress_bar, say
from prunus.data.room import Room
from prunus.data.scaling import scaled_name
from prunus.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SPLITS = ("train", "test")
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_ARCHIVE_SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".txz", ".tar", ".zip")
_MAX_IMAGE_FILE_BYTES = 64 * 2**20
LAYOUT = "an image folder holds train/<class>/<image> and test/<class>/<image>, at most under one top folder"
_HOW_TO_SKIP = "Repair or remove it, or leave such images out with --skip-bad-images (in Python skip_bad_images=True)"


@dataclass
class _Images:
    """The images among the files of a source, and what was met on the way to them."""

    source: Path
    members: Iterable[Member]
    roots: set[tuple[str, ...]] = field(default_factory=set)
    elsewhere: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Encoded]:
        """Read the images in train and test. Notes, thumbnails and hidden files are passed over."""
        seen: set[tuple[str, ...]] = set()
        for member in self.members:
            if not is_image(member.parts):
                continue
            name = shown("/".join(member.parts))
            depth = _root_depth(member.parts)
            if depth is None:
                self.elsewhere.append(name)
                continue
            self.roots.add(member.parts[:depth])
            parts = member.parts[depth:]
            if len(self.roots) > 1:
                found = " and ".join(sorted(shown("/".join((*root, "train"))) for root in self.roots))
                raise DataError(f"{self.source} holds more than one image folder: {found}; {LAYOUT}")
            if parts in seen:
                raise DataError(f"{self.source} holds '{name}' twice; pack it again")
            seen.add(parts)
            if member.size > _MAX_IMAGE_FILE_BYTES:
                raise DataError(f"{self.source} holds '{name}' of {member.size:,} bytes, too much for an image")
            yield Encoded(parts, member.read())


def read_image_folder(
    source: Path,
    members: Iterable[Member],
    room: Room,
    *,
    skip_bad_images: bool = False,
    progress: bool = True,
    image_size: int | None = None,
) -> ImageData:
    """Decode an image folder; its classes are the sorted folder names, its images are sorted by path.

    The set is grey (one channel) if every image is, else RGB with grey images repeated. All images must have one size,
    or are given one.

    Args:
        source: the directory or archive, for its name and for messages.
        members: its files, each read at most once and in order.
        room: where the pixels go.
        skip_bad_images: leave out unreadable and odd-sized images, and say how many on stderr, in place of an error.
        progress: show a progress bar if it takes over two seconds.
        image_size: scale images until they cover a square of so many pixels a side, and take the middle.

    Raises:
        DataError: no images, other classes in test than in train, or a bad image, named with what was expected.
    """
    images = _Images(source, members)
    title = f"Reading {shown(source.name)}"
    with closing(decode_all(images, image_size)) as decoder, progress_bar(title, show=progress) as advance:
        decoded, unreadable = _taken_in(source, decoder, room, skip_bad_images, advance)
    if images.elsewhere:
        count = len(images.elsewhere)
        say(f"{source}: {count:,} images outside train and test are not used, first {images.elsewhere[0]}")
    if not decoded:
        raise DataError(f"{source} holds no images in train or test; {LAYOUT} ({', '.join(sorted(_SUFFIXES))})")
    decoded.sort(key=lambda image: image.parts)
    good, odd = _part_by_size(source, decoded, skip_bad_images)
    bad = unreadable + odd
    if bad:
        say(f"{source}: skipped {len(bad):,} bad image{'s' * (len(bad) > 1)}, first {bad[0]}")
    return _assemble(source, good, room, len(bad), image_size)


def is_image(parts: tuple[str, ...]) -> bool:
    """Tell by its path whether a file is an image; hidden files and those of macOS are not."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return bool(parts) and not hidden and PurePosixPath(parts[-1]).suffix.lower() in _SUFFIXES


def _root_depth(parts: tuple[str, ...]) -> int | None:
    """How many folders lie above train or test: 0, 1, or None where the file is in no class of either."""
    return next((depth for depth in (0, 1) if len(parts) >= depth + 3 and parts[depth] in _SPLITS), None)


def _taken_in(
    source: Path, images: Iterable[Decoded], room: Room, skip: bool, advance: Advance
) -> tuple[list[Decoded], list[str]]:
    """Keep what could be decoded, and describe what could not."""
    good: list[Decoded] = []
    bad: list[str] = []
    for image in images:
        advance()
        if image.pixels is None:
            bad.append(f"{shown('/'.join(image.parts))}: {shown(image.reason)}")
            if not skip:
                raise DataError(f"{source} holds an image that cannot be read, {bad[0]}. {_HOW_TO_SKIP}")
            continue
        good.append(dataclasses.replace(image, pixels=room.keep(image.pixels)))
    return good, bad


def _part_by_size(source: Path, images: list[Decoded], skip: bool) -> tuple[list[Decoded], list[str]]:
    """Part the images of the most common size from the others, which are described."""
    usual, count = Counter(_size(image) for image in images).most_common(1)[0]
    odd = [
        f"{shown('/'.join(image.parts))}: found {_size(image)} pixels, expected {usual}, the size of {count:,} of "
        f"{len(images):,} images"
        for image in images
        if _size(image) != usual
    ]
    if odd and not skip:
        raise DataError(
            f"{source} holds {len(odd):,} image{'s' * (len(odd) > 1)} of an odd size, first {odd[0]}. Scale all to "
            "one size with --image-size 224, say (in Python image_size=224), or leave these out with --skip-bad-images "
            "(skip_bad_images=True)"
        )
    return [image for image in images if _size(image) == usual], odd


def _size(image: Decoded) -> str:
    assert image.pixels is not None  # the unreadable ones are parted off before
    height, width = image.pixels.shape[:2]
    return f"{width}×{height}"


def _assemble(source: Path, images: list[Decoded], room: Room, skipped: int, image_size: int | None) -> ImageData:
    classes = {split: sorted({image.parts[1] for image in images if image.parts[0] == split}) for split in _SPLITS}
    _check_classes(source, classes)
    channels = 3 if any(image.pixels is not None and image.pixels.ndim == 3 for image in images) else 1
    names = classes["train"]
    number = {name: index for index, name in enumerate(names)}
    parts = {split: [image for image in images if image.parts[0] == split] for split in _SPLITS}
    arrays = {
        split: (_stack(part, channels, room), np.array([number[image.parts[1]] for image in part]))
        for split, part in parts.items()
    }
    name = scaled_name(display_name(source, names), image_size)
    return make_image_data(name, names, arrays["train"], arrays["test"], skipped, room.full)


def _check_classes(source: Path, classes: dict[str, list[str]]) -> None:
    for split, other in (_SPLITS, _SPLITS[::-1]):
        if not classes[split]:
            raise DataError(f"{source} holds no images in {split}; {LAYOUT}")
        missing = [shown(name) for name in classes[other] if name not in classes[split]]
        if missing:
            raise DataError(
                f"{source}: {split} lacks classes that {other} has: {', '.join(missing[:5])}; "
                "both need the same class folders, with images in each"
            )
    strange = [name for name in classes["train"] if not name.isprintable()]
    if strange:
        raise DataError(f"{source}: the class name '{shown(strange[0])}' has control characters; rename its folder")


def _stack(images: list[Decoded], channels: int, room: Room) -> np.ndarray:
    """Stack (H, W) and (H, W, 3) images to (N, C, H, W)."""
    pixels = [image.pixels for image in images if image.pixels is not None]
    stacked = room.empty((len(pixels), channels, *pixels[0].shape[:2]))
    for target, image in zip(stacked, pixels, strict=True):
        target[:] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    return stacked


def display_name(source: Path, classes: list[str]) -> str:
    """Name a data set after its file; the JPEG copy of CIFAR-10 says that it is one, since its figures are its own."""
    name = source.resolve().name
    if name.startswith("cifar10-jpeg") and tuple(classes) == CIFAR10_CLASSES:
        return "CIFAR-10 (JPEG)"
    for suffix in _ARCHIVE_SUFFIXES:
        name = name.removesuffix(suffix)
    return shown(name)
