"""Hostile and damaged archives: one error, nothing written, nothing unpacked, never fewer files than there were."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.samples import add_tar_file, folder_files, picture, write_tar, write_zip

from prunus.data import load_data
from prunus.data.members import archive_members
from prunus.errors import DataError


def tar_with(path: Path, add: Callable[[tarfile.TarFile], None]) -> Path:
    with tarfile.open(path, "w") as archive:
        add(archive)
        for name, content in folder_files().items():
            add_tar_file(archive, name, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> Callable[[tarfile.TarFile], None]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return lambda archive: archive.addfile(info)


def sparse(archive: tarfile.TarFile) -> None:
    """A file of 4 bytes that says it has 600, the rest being a hole."""
    info = tarfile.TarInfo("train/ant/z.png")
    info.size = 4
    info.pax_headers = {"GNU.sparse.size": "600", "GNU.sparse.map": "0,4"}
    archive.addfile(info, BytesIO(b"abcd"))


def named(name: str) -> Callable[[tarfile.TarFile], None]:
    return lambda archive: add_tar_file(archive, name, picture(0))


HOSTILE_TARS = {
    "symbolic link": (special("train/ant/z.png", tarfile.SYMTYPE, "/etc/passwd"), "a link, device or sparse file"),
    "hard link": (special("train/ant/z.png", tarfile.LNKTYPE, "train/ant/0.png"), "a link, device or sparse file"),
    "device": (special("train/ant/z.png", tarfile.CHRTYPE), "a link, device or sparse file"),
    "fifo": (special("train/ant/z.png", tarfile.FIFOTYPE), "a link, device or sparse file"),
    "sparse file": (sparse, "a link, device or sparse file"),
    "absolute": (named("/train/ant/z.png"), "leads outside"),
    "parent": (named("train/../../z.png"), "leads outside"),
    "drive": (named("C:train/ant/z.png"), "leads outside"),
    "backslash": (named("train\\..\\..\\z.png"), "leads outside"),
    "twice": (named("train/ant/0.png"), r"train/ant/0\.png' twice"),
    "escape sequence": (named("/\x1b[2J.png"), r"'/\\x1b\[2J\.png'"),
    "bytes that are no text": (named("/\udcff.png"), r"'/\\udcff\.png'"),
}


@pytest.mark.parametrize("kind", sorted(HOSTILE_TARS))
def test_a_hostile_tar_is_refused(kind: str, tmp_path: Path) -> None:
    add, message = HOSTILE_TARS[kind]
    source = tar_with(tmp_path / "a.tar", add)
    with pytest.raises(DataError, match=message):
        load_data(source, cache_dir=tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar"]


@pytest.mark.parametrize("name", ["/train/ant/z.png", "train/ant/../../../z.png", "\\\\server\\z.png"])
def test_a_zip_with_a_path_outside_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leads outside"):
        load_data(write_zip(tmp_path / "a.zip", {name: picture(0)} | folder_files()), cache_dir=tmp_path / "cache")


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", folder_files())
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("train/ant/z.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"'train/ant/z\.png', a link, device or sparse file"):
        load_data(source, cache_dir=tmp_path / "cache")


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    """The headers say 10 bytes, the content unpacks to 50 MB."""
    source = write_zip(tmp_path / "a.zip", {"train/ant/z.png": bytes(50_000_000)})
    size = (50_000_000).to_bytes(4, "little")
    source.write_bytes(source.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match="cannot be read as a"):
        load_data(source, cache_dir=tmp_path / "cache")


def test_a_zip_packed_by_a_rare_method_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("train/ant/0.png", bytes(1000))
    with pytest.raises(DataError, match=r"'train/ant/0\.png' in .* is packed by a rare method"):
        load_data(tmp_path / "a.zip", cache_dir=tmp_path / "cache")


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.type = kind
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE_HEADERS = {
    "image of a terabyte": (tar_header("train/ant/0.png", 2**40), "files of more than 268435456 bytes"),
    "image of 100 MB": (tar_header("train/ant/0.png", 100 * 2**20), "too much for an image"),
    "attributes of a gigabyte": (tar_header("x", 2**30, tarfile.XHDTYPE), "in one piece: damaged or hostile"),
    "name of a gigabyte": (tar_header("x", 2**30, tarfile.GNUTYPE_LONGNAME), "in one piece: damaged or hostile"),
    "negative size": (tar_header("train/ant/0.png", -512), "damaged|hostile|more than"),
    "very negative size": (tar_header("notes", -(2**40)), "damaged|hostile|more than"),
    "names of names": (tar_header("x", 1, tarfile.GNUTYPE_LONGNAME) * 4000, "cannot be read as a"),
}


@pytest.mark.parametrize("kind", sorted(HOSTILE_HEADERS))
def test_a_hostile_header_is_refused_before_anything_is_read(kind: str, tmp_path: Path) -> None:
    header, message = HOSTILE_HEADERS[kind]
    source = tmp_path / "a.tar"
    source.write_bytes(header + bytes(10_240))
    with pytest.raises(DataError, match=message):
        load_data(source, cache_dir=tmp_path / "cache")


def all_names(path: Path) -> list[str]:
    return ["/".join(member.parts) for member in archive_members(path) if member.read() is not None]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_an_archive_cut_anywhere_is_an_error(kind: str, tmp_path: Path) -> None:
    files = folder_files()
    whole = write_zip(tmp_path / "a", files) if kind == "zip" else write_tar(tmp_path / "a", files, kind[4:])
    assert all_names(whole) == list(files)
    content = whole.read_bytes()
    # A tar archive ends in zeros, of which one block is enough.
    end = len(content.rstrip(b"\0")) if kind == "tar" else len(content)
    for length in [*range(0, end, max(1, end // 40)), end - 1]:
        whole.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"damaged|cut short|no images"):
            load_data(whole, cache_dir=tmp_path / "cache")


def test_a_damaged_header_in_the_middle_does_not_end_the_archive(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", folder_files())
    content = bytearray(source.read_bytes())
    at = content.index(b"train/bee/1.png")
    content[at : at + 5] = b"TRAIN"  # the header's checksum no longer holds
    source.write_bytes(content)
    with pytest.raises(DataError, match="stops without the mark of a tar archive's end"):
        load_data(source, cache_dir=tmp_path / "cache")


def test_a_file_that_is_no_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match=r"a\.tar cannot be read as a \.tar, \.tar\.gz, \.tar\.xz or \.zip archive"):
        load_data(tmp_path / "a.tar", cache_dir=tmp_path / "cache")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(kind=st.sampled_from(["tar", "tar.gz", "tar.xz", "zip"]), data=st.data())
def test_a_changed_archive_is_read_or_a_data_error(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    files = {"train/ant/0.png": b"one", "train/ant/1.png": b"two" * 50}
    path = tmp_path / "a"
    (write_zip(path, files) if kind == "zip" else write_tar(path, files, kind[4:]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 2048) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DataError):
        all_names(path)
