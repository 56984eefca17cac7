"""load_data: from what the user typed to an ImageData."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from prunus.data.cache import cached, default_cache_dir
from prunus.data.cifar import LAYOUTS, Layout, cifar_layout, read_cifar
from prunus.data.dataset import ImageData
from prunus.data.digits import load_digits
from prunus.data.download import OFFICIAL, find_official, find_or_download
from prunus.data.folder import LAYOUT, is_image, read_image_folder
from prunus.data.members import Member, archive_members, folder_members
from prunus.data.room import Room, half_of_the_memory
from prunus.data.scaling import check_side, scaled
from prunus.errors import DataError

NAMES = ("digits", *OFFICIAL)


def load_data(
    spec: str | Path,
    *,
    cache_dir: Path | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
    memory_bytes: float | None = None,
    image_size: int | None = None,
) -> ImageData:
    """Load a data set by its name or from a path; decoded images are cached.

    Args:
        spec: "digits" (comes with Prunus), "cifar10", "cifar100" (looked for in the cache folder and here, else
            downloaded); or the path of an official CIFAR archive, or of an image folder (train/<class>/…,
            test/<class>/…) as a directory, .tar, .tar.gz, .tar.xz or .zip.
        cache_dir: default: $PRUNUS_CACHE or the user's cache folder.
        skip_bad_images: leave out unreadable and odd-sized images of an image folder, and say so, in place of an error.
        progress: show progress bars, on stderr, for what takes over two seconds.
        memory_bytes: decoded images of an image folder beyond this stay on the disk, in the cache folder, and are read
            when they are looked at; default: half of the machine's memory.
        image_size: scale every image until it covers a square of so many pixels a side (4..1024), and take the middle;
            default: as they are, all of one size.

    Raises:
        DataError: there is no such data set, or it cannot be used; the message says why and what to do.
    """
    check_side(image_size)
    if spec == "digits":
        return load_digits() if image_size is None else scaled(load_digits(), image_size)
    cache_dir = cache_dir or default_cache_dir()
    known = isinstance(spec, str) and spec in OFFICIAL
    path = find_or_download(str(spec), cache_dir, progress=progress) if known else _existing(spec)

    memory_bytes = half_of_the_memory() if memory_bytes is None else memory_bytes

    def build() -> ImageData:
        return _read(path, Room(memory_bytes, cache_dir), skip_bad_images, progress, image_size)

    return cached(
        path, cache_dir, build, skip_bad_images=skip_bad_images, memory_bytes=memory_bytes, image_size=image_size
    )


def find_data(spec: str | Path, cache_dir: Path | None = None) -> str | Path | None:
    """Say where a data set is that can be used without a download: "digits", or a path; None where there is none.

    Raises:
        DataError: an official archive has the wrong checksum.
    """
    if spec == "digits":
        return "digits"
    if isinstance(spec, str) and spec in OFFICIAL:
        return find_official(spec, cache_dir or default_cache_dir())
    path = Path(spec).expanduser()
    return path if path.exists() else None


def _existing(spec: str | Path) -> Path:
    path = Path(spec).expanduser()
    try:
        if str(spec) and path.is_dir():
            return _checked_folder(path)
        if path.is_file():
            return path
    except (OSError, ValueError) as error:  # no permission, or a name that no file can have
        raise DataError(f"the data set {str(spec)!r:.200} cannot be opened: {error}") from error
    near = get_close_matches(str(spec).lower().replace("-", ""), NAMES, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise DataError(
        f"there is no data set '{spec}': neither a file or folder here nor one of {', '.join(NAMES)}.{hint}"
    )


def _checked_folder(path: Path) -> Path:
    """Look before leaping: a home folder given by mistake would be searched for minutes."""
    parts = ("train", "test", *LAYOUTS)
    places = (path, *(child for child in path.iterdir() if child.is_dir()))
    if path.resolve().name in LAYOUTS or any((place / part).is_dir() for place in places for part in parts):
        return path
    raise DataError(f"{path} has neither train nor test in it; {LAYOUT}")


def _read(path: Path, room: Room, skip_bad_images: bool, progress: bool, image_size: int | None) -> ImageData:
    with closing(_members(path)) as members:
        layout, found = _recognise(members)
        if layout:
            data = read_cifar(path, layout, found)
            return data if image_size is None else scaled(data, image_size)
        return read_image_folder(
            path, found, room, skip_bad_images=skip_bad_images, progress=progress, image_size=image_size
        )


def _members(path: Path) -> Generator[Member]:
    if not path.is_dir():
        return archive_members(path)
    name = path.resolve().name
    # Where a folder is CIFAR's own, unpacked, only its name tells so.
    return folder_members(path, (name,) if name in LAYOUTS else ())


def _recognise(members: Iterator[Member]) -> tuple[Layout | None, Iterator[Member]]:
    """Tell CIFAR's own files from an image folder (None) by the first file that is either; give all from there on."""
    for member in members:
        layout = cifar_layout(member.parts)
        if layout or is_image(member.parts):
            return layout, chain([member], members)
    return None, iter(())
