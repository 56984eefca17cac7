"""The cache: used when it is right, rebuilt when it is not, never believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.samples import folder_files, picture, write_tar, write_tree

from prunus.data import ImageData, load_data
from prunus.data import load as load_module
from prunus.data.cache import default_cache_dir
from prunus.errors import DataError
from prunus.files import load_tensors, save_tensors


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources that were decoded and did not come from the cache."""
    sources: list[Path] = []
    read = load_module._read

    def spy(path: Path, *arguments: Any) -> ImageData:
        sources.append(path)
        return read(path, *arguments)

    monkeypatch.setattr(load_module, "_read", spy)
    return sources


def same(one: ImageData, other: ImageData) -> bool:
    tensors = ("train_images", "train_labels", "test_images", "test_labels")
    rest = ("name", "classes", "mean", "std", "skipped")
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in tensors) and all(
        getattr(one, key) == getattr(other, key) for key in rest
    )


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_the_second_time_nothing_is_decoded(tmp_path: Path, decoded: list[Path]) -> None:
    source = write_tar(tmp_path / "a.tar.gz", folder_files(), "gz")
    first = load_data(source, cache_dir=tmp_path / "cache")
    assert same(first, load_data(source, cache_dir=tmp_path / "cache"))
    assert decoded == [source]


def test_another_content_is_another_cache(tmp_path: Path, decoded: list[Path]) -> None:
    source = write_tar(tmp_path / "a.tar", folder_files())
    load_data(source, cache_dir=tmp_path / "cache")
    write_tar(source, folder_files() | {"train/ant/0.png": picture(77)})
    load_data(source, cache_dir=tmp_path / "cache")
    assert len(decoded) == len(list((tmp_path / "cache").iterdir())) == 2


def test_a_changed_directory_is_another_cache(tmp_path: Path, decoded: list[Path]) -> None:
    source = write_tree(tmp_path / "a", folder_files())
    load_data(source, cache_dir=tmp_path / "cache")
    load_data(source, cache_dir=tmp_path / "cache")
    assert len(decoded) == 1
    os.utime(source / "train/ant/0.png", ns=(1, 1))
    load_data(source, cache_dir=tmp_path / "cache")
    (source / "train/ant/0.png").rename(source / "train/ant/8.png")
    load_data(source, cache_dir=tmp_path / "cache")
    assert len(decoded) == 3


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    old_tensors, old_metadata = load_tensors(path)
    save_tensors(path, old_tensors | tensors, old_metadata | metadata)


def without_test_labels(path: Path) -> None:
    tensors, metadata = load_tensors(path)
    del tensors["test_labels"]
    save_tensors(path, tensors, metadata)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "one byte changed": flip_a_byte,
    "not safetensors": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n" * 50),
    # From here on the checksum is right and the content is not.
    "labels out of range": lambda path: rewrite(path, {"train_labels": torch.full((6,), 2)}, {}),
    "negative labels": lambda path: rewrite(path, {"train_labels": torch.full((6,), -1)}, {}),
    "too few labels": lambda path: rewrite(path, {"test_labels": torch.zeros(3, dtype=torch.int64)}, {}),
    "float images": lambda path: rewrite(path, {"train_images": torch.zeros(6, 3, 4, 6)}, {}),
    "images without axes": lambda path: rewrite(path, {"train_images": torch.zeros((), dtype=torch.uint8)}, {}),
    "a tensor missing": without_test_labels,
    "std of zero": lambda path: rewrite(path, {}, {"std": "[0.0, 1.0, 1.0]"}),
    "mean of text": lambda path: rewrite(path, {}, {"mean": '["a", "b", "c"]'}),
    "mean of NaN": lambda path: rewrite(path, {}, {"mean": "[NaN, 0.5, 0.5]"}),
    "classes not JSON": lambda path: rewrite(path, {}, {"classes": "ant"}),
    "classes of lists": lambda path: rewrite(path, {}, {"classes": "[[], []]"}),
    "classes nested": lambda path: rewrite(path, {}, {"classes": "[" * 100_000}),
    "skipped of text": lambda path: rewrite(path, {}, {"skipped": '"many"'}),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_wrong_cache_is_said_and_rebuilt(
    kind: str, tmp_path: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tar(tmp_path / "a.tar", folder_files())
    first = load_data(source, cache_dir=tmp_path / "cache")
    right = only_file(tmp_path / "cache").read_bytes()
    DAMAGE[kind](only_file(tmp_path / "cache"))
    assert same(first, load_data(source, cache_dir=tmp_path / "cache"))
    assert len(decoded) == 2
    message = capsys.readouterr().err
    assert "image cache" in message and "is decoded again" in message
    assert only_file(tmp_path / "cache").read_bytes() == right


def test_a_cache_with_skipped_images_does_not_hide_them(
    tmp_path: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tar(tmp_path / "a.tar", folder_files() | {"train/ant/7.png": b"bad"})
    first = load_data(source, cache_dir=tmp_path / "cache", skip_bad_images=True)
    capsys.readouterr()
    assert same(first, load_data(source, cache_dir=tmp_path / "cache", skip_bad_images=True))
    assert "1 bad image left out" in capsys.readouterr().err
    assert len(decoded) == 1
    with pytest.raises(DataError, match=r"train/ant/7\.png"):
        load_data(source, cache_dir=tmp_path / "cache")


def test_an_error_leaves_no_cache(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", folder_files() | {"train/ant/7.png": b"bad"})
    with pytest.raises(DataError):
        load_data(source, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_said_and_the_data_still_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tar(tmp_path / "a.tar", folder_files())
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(load_data(source, cache_dir=tmp_path / "cache").train_images) == 6
    assert "are not kept for the next time" in capsys.readouterr().err


def test_nothing_is_written_beside_the_cache(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = write_tar(tmp_path / "data" / "a.tar", folder_files())
    load_data(source, cache_dir=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.tar"]
    _, metadata = load_tensors(only_file(tmp_path / "cache"))
    assert json.loads(metadata["classes"]) == ["ant", "bee"]


def test_the_folder_is_the_users_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRUNUS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache_dir() == tmp_path / "xdg" / "prunus"
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"
    load_data(write_tar(tmp_path / "a.tar", folder_files()))
    assert only_file(tmp_path / "mine").suffix == ".safetensors"
