"""Find the official CIFAR archives on this machine, or download them and compare their checksums."""

from __future__ import annotations

import hashlib
import http.client
import secrets
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from prunus.data.progress import progress_bar
from prunus.errors import DataError

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
_TIMEOUT_S = 30.0
_PIECE_BYTES = 2**18
_MAX_BYTES = 2**30  # the archives have about 170 MB


@dataclass(frozen=True)
class Official:
    """An archive as its author publishes it, and the folder that it unpacks to."""

    file: str
    md5: str
    folder: str


# The first of each is the one that is downloaded.
OFFICIAL = {
    "cifar10": (
        Official("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
        Official("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
    ),
    "cifar100": (
        Official("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
        Official("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
    ),
}


def find_or_download(spec: str, cache_dir: Path, *, progress: bool = True) -> Path:
    """Give the path of an official archive, or of its unpacked folder, in `cache_dir` or here; else download it.

    Raises:
        DataError: an archive has the wrong checksum, or there is none and no network to get it by.
    """
    found = find_official(spec, cache_dir)
    if found is not None:
        return found
    official = OFFICIAL[spec][0]
    download(BASE_URL + official.file, cache_dir / official.file, official.md5, progress=progress)
    return cache_dir / official.file


def find_official(spec: str, cache_dir: Path) -> Path | None:
    """Give the path of an official archive, or of its unpacked folder, in `cache_dir` or here; None without one.

    Raises:
        DataError: an archive has the wrong checksum.
    """
    for folder in (cache_dir, Path.cwd()):
        for official in OFFICIAL[spec]:
            archive = folder / official.file
            if archive.is_file():
                _check(archive, official)
                return archive
            if (folder / official.folder).is_dir():
                return folder / official.folder
    return None


def download(url: str, target: Path, md5: str, *, progress: bool = True) -> None:
    """Fetch `url` into the file `target`, which is there only if it came whole and with the right MD5.

    MD5 is what the author of the archives publishes; it finds damage, and the connection is encrypted.
    """
    advice = (
        f"with a network, type the same again; without one, get {target.name} elsewhere and give its path: "
        f"--data path/to/{target.name}"
    )
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = _fetch(url, part, progress)
            if found != md5:
                raise DataError(
                    f"{url} is not the official file: MD5 {found}, expected {md5}. It was deleted; it may have been "
                    f"cut short or changed on its way: {advice}"
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{target} is not there and {url} could not be downloaded ({error}): {advice}") from error


def _fetch(url: str, part: Path, progress: bool) -> str:
    """Stream a file to disk and give its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "prunus"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, part.open("xb") as file:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        with progress_bar(f"Downloading {url}", total=total, unit_bytes=True, show=progress) as advance:
            received = 0
            while piece := response.read(_PIECE_BYTES):
                received += len(piece)
                if received > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
                digest.update(piece)
                file.write(piece)
                advance(len(piece))
    return digest.hexdigest()


def _check(archive: Path, official: Official) -> None:
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {error.strerror or error}") from error
    if found != official.md5:
        raise DataError(
            f"{archive} is not the official archive: MD5 {found}, expected {official.md5}. Delete it and type the same "
            "again, or give the path of another one"
        )
