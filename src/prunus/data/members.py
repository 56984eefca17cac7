"""Walk through the files of a tar or zip archive in memory, in the order they are stored; nothing is unpacked to disk.

An archive comes from somewhere else and may be hostile. So: names that lead outside are refused, links and devices are
too, sizes are bounded before anything is read, and a damaged or truncated archive is an error, never a shorter
data set.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from prunus.errors import DataError

MAX_FILE_BYTES = 256 * 2**20  # the largest file of a known data set, CIFAR-100's training batch, has 154 MB
_MAX_HEADER_BYTES = 2**20  # a long file name, or the extended attributes of a file
_MAX_TAIL_BYTES = 64 * 2**20  # padding after the end of a tar archive
_DRIVE = re.compile("[A-Za-z]:")
_ZEROS = bytes(tarfile.BLOCKSIZE)
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,  # zipfile: password wanted, unknown method (NotImplementedError); tarfile: RecursionError
)


@dataclass(frozen=True)
class Member:
    """A file inside an archive or folder: the parts of its path, its size in bytes, and how to read it.

    `read` must be called before the next member is asked for: archives are read once, from front to back.
    """

    parts: tuple[str, ...]
    size: int
    read: Callable[[], bytes]


def shown(name: str) -> str:
    """Make a name from an archive fit for a terminal: control characters and stray bytes are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def archive_members(path: Path) -> Generator[Member]:
    """Yield the files of a .tar, .tar.gz, .tar.xz or .zip archive, whatever its name says.

    Raises:
        DataError: not an archive, damaged, cut short, or hostile (absolute or `..` paths, files of absurd size).
    """
    with _one_error(path), path.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        if magic.startswith(b"PK"):
            yield from _zip_members(path, file)
        elif magic == b"\xfd7zXZ\x00":
            with lzma.open(file) as unpacked:
                yield from _tar_members(path, unpacked)
        elif magic.startswith(b"\x1f\x8b"):
            with gzip.open(file) as unpacked:
                yield from _tar_members(path, unpacked)
        else:
            yield from _tar_members(path, file)


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Turn everything that a damaged archive makes the standard library raise into a DataError."""
    try:
        yield
    except _BROKEN as error:
        raise DataError(
            f"{path} cannot be read as a .tar, .tar.gz, .tar.xz or .zip archive: {shown(str(error))}. "
            "It is damaged, cut short or something else; get it again"
        ) from error


class _Bounded:
    """A file of which a bounded number of bytes can be read at a time, and the last that were read are known.

    tarfile trusts the sizes in an archive: a header of a few bytes can ask for gigabytes at once.
    """

    def __init__(self, path: Path, file: IO[bytes] | gzip.GzipFile) -> None:
        self.path = path
        self.file = file
        self.limit = _MAX_HEADER_BYTES
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.limit:
            raise DataError(f"{self.path} asks for {size} bytes in one piece: damaged or hostile, not read further")
        self.last = self.file.read(size)
        return self.last

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, position: int) -> int:
        return self.file.seek(position)


def _tar_members(path: Path, file: IO[bytes] | gzip.GzipFile) -> Iterator[Member]:
    bounded = _Bounded(path, file)
    with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
        while (info := archive.next()) is not None:
            archive.members = []  # else it keeps every header, hundreds of bytes for each file
            if info.isdir():
                continue
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
                raise _not_plain(path, info.name)
            yield _member(path, info.name, info.size, partial(_read_tar, archive, bounded, info))
    # tarfile takes a damaged header for the end of the archive. The end that was meant is a block of zeros.
    if bounded.last != _ZEROS:
        raise DataError(f"{path} is damaged or cut short: it stops without the mark of a tar archive's end")
    tail = 0
    while piece := file.read(2**20):  # up to the checksum at the end of a compressed file
        tail += len(piece)
        if tail > _MAX_TAIL_BYTES:
            raise DataError(f"{path} goes on for more than {_MAX_TAIL_BYTES} bytes after its end: damaged or hostile")


def _read_tar(archive: tarfile.TarFile, bounded: _Bounded, info: tarfile.TarInfo) -> bytes:
    bounded.limit = info.size  # at most MAX_FILE_BYTES: _member has seen to it
    with _one_error(bounded.path):
        file = archive.extractfile(info)
        if file is None:
            raise _not_plain(bounded.path, info.name)
        with file:
            content = file.read()
    bounded.limit = _MAX_HEADER_BYTES
    return content


def _zip_members(path: Path, file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            if info.is_dir():
                continue
            if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
                raise _not_plain(path, info.filename)
            yield _member(path, info.filename, info.file_size, partial(_read_zip, path, archive, info))


def _read_zip(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    # The other methods of zip unpack as much as they like at once; and without a limit so does deflate.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"'{shown(info.filename)}' in {path} is packed by a rare method; pack the archive with deflate")
    with _one_error(path), archive.open(info) as file:
        return file.read(info.file_size + 1)


def _not_plain(path: Path, name: str) -> DataError:
    return DataError(
        f"{path} holds '{shown(name)}', a link, device or sparse file, which is not read; "
        "pack the archive again with plain files only (tar --dereference --hard-dereference)"
    )


def _member(path: Path, name: str, size: int, read: Callable[[], bytes]) -> Member:
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    if name.startswith(("/", "\\")) or ".." in parts or _DRIVE.match(name):
        raise DataError(f"{path} holds '{shown(name)}', a path that leads outside: hostile, not read further")
    if not 0 <= size <= MAX_FILE_BYTES:
        raise DataError(
            f"{path} holds '{shown(name)}' of {size} bytes; files of more than {MAX_FILE_BYTES} bytes are not read"
        )
    return Member(parts, size, read)


def folder_members(path: Path, prefix: tuple[str, ...] = ()) -> Generator[Member]:
    """Yield the regular files below a folder; `prefix` is put before the parts of their paths.

    Raises:
        DataError: a folder or file cannot be read.
    """
    try:
        for file in files_below(path):
            yield Member(prefix + file.relative_to(path).parts, file.stat().st_size, file.read_bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the regular files below a folder, in order. Links are followed, but not in circles (to one of `above`).

    A folder that cannot be read is an OSError, where Path.rglob would pass it over and the data set come out shorter.
    """
    real = folder.resolve()
    if real in above:
        return
    with os.scandir(folder) as found:  # unlike Path.iterdir it knows what is a folder without asking again
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from files_below(folder / entry.name, (*above, real))
        elif entry.is_file():
            yield folder / entry.name
