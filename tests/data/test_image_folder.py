"""Image folders in every packing: equal results, and errors that name the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.samples import folder_files, picture, pixels_of, write_tar, write_tree, write_zip

from prunus.data import load_data
from prunus.data.folder import CIFAR10_CLASSES
from prunus.errors import DataError


def pack(kind: str, tmp_path: Path, files: dict[str, bytes]) -> Path:
    if kind == "directory":
        return write_tree(tmp_path / "insects", files)
    if kind == "zip":
        return write_zip(tmp_path / "insects.zip", files)
    suffix = {"tar": "", "tar.gz": "gz", "tar.xz": "xz"}[kind]
    return write_tar(tmp_path / f"insects.{kind}", files, suffix)


@pytest.mark.parametrize("top", ["", "./", "insects-v1/"])
@pytest.mark.parametrize("kind", ["directory", "tar", "tar.gz", "tar.xz", "zip"])
def test_every_packing_gives_the_same_data(kind: str, top: str, tmp_path: Path) -> None:
    files = folder_files(top)
    backwards = dict(reversed(files.items()))  # the order in the archive must not matter
    notes = {f"{top}README.md": b"hello", f"{top}train/ant/.hidden.png": b"junk", "__MACOSX/train/ant/a.png": b"junk"}
    data = load_data(pack(kind, tmp_path, {**notes, **backwards}), cache_dir=tmp_path / "cache")
    assert data.name == "insects"
    assert data.classes == ("ant", "bee")
    assert data.train_images.shape == (6, 3, 4, 6)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    expected = [pixels_of(files[f"{top}train/{name}/{index}.png"]) for name in ("ant", "bee") for index in range(3)]
    assert np.array_equal(data.train_images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    data = load_data(write_tar(tmp_path / "a.tar", folder_files()), cache_dir=tmp_path / "cache")
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    data = load_data(write_tar(tmp_path / "a.tar", folder_files(mode="L")), cache_dir=tmp_path / "cache")
    assert data.train_images.shape == (6, 1, 4, 6)


def test_one_colour_image_makes_all_of_them_rgb(tmp_path: Path) -> None:
    files = folder_files(mode="L") | {"train/bee/9.png": picture(1, mode="RGBA")}
    data = load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")
    assert data.train_images.shape == (7, 3, 4, 6)
    grey, colour = data.train_images[0], data.train_images[6]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert np.array_equal(colour.numpy(), pixels_of(files["train/bee/9.png"])[:, :, :3].transpose(2, 0, 1))


def test_the_jpeg_copy_of_cifar_10_says_so(tmp_path: Path) -> None:
    files = {f"{split}/{name}/0.png": picture(3) for split in ("train", "test") for name in CIFAR10_CLASSES}
    archives = {
        "CIFAR-10 (JPEG)": write_tar(tmp_path / "cifar10-jpeg.tar.xz", files, "xz"),
        "other": write_tar(tmp_path / "other.tar", files),
        "cifar10-jpeg-x": write_tar(tmp_path / "cifar10-jpeg-x.tar", folder_files()),
    }
    for name, archive in archives.items():
        assert load_data(archive, cache_dir=tmp_path / "cache").name == name


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "odd size": (
        picture(0, size=(5, 4)),
        r"of an odd size, first test/bee/7\.png: found 5×4 pixels, expected 6×4",
    ),
    "cut short": (picture(0, size=(6, 4))[:60], r"cannot be read, test/bee/7\.png: "),
    "no image": (b"<html>", r"cannot be read, test/bee/7\.png: not an image that Pillow can read"),
    "empty": (b"", r"cannot be read, test/bee/7\.png: "),
    "bomb": (png_header(50_000, 50_000), r"cannot be read, test/bee/7\.png: .*exceeds limit"),
    "too large": (png_header(5_000, 5_000), r"test/bee/7\.png: 5000×5000 pixels are too many"),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_image_is_an_error_that_names_it_or_is_skipped(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD[kind]
    source = write_tar(tmp_path / "a.tar", {"test/bee/7.png": content} | folder_files())
    with pytest.raises(DataError, match=message + r"(?s:.*)--skip-bad-images"):
        load_data(source, cache_dir=tmp_path / "cache")
    data = load_data(source, cache_dir=tmp_path / "cache", skip_bad_images=True)
    assert data.skipped == 1
    assert len(data.test_images) == 4
    assert "a.tar: skipped 1 bad image, first test/bee/7.png: " in capsys.readouterr().err


def test_deep_images_are_not_clipped(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.full((4, 6), 40_000, dtype=np.uint16)).save(buffer, "png")
    source = write_tar(tmp_path / "a.tar", folder_files() | {"test/bee/7.png": buffer.getvalue()})
    with pytest.raises(DataError, match=r"test/bee/7\.png: it has more than 8 bits a channel"):
        load_data(source, cache_dir=tmp_path / "cache")


def without(pattern: str) -> dict[str, bytes]:
    return {name: content for name, content in folder_files().items() if not name.startswith(pattern)}


WRONG_LAYOUTS = {
    "no images": ({"README": b"x"}, r"no images in train or test; an image folder holds train/<class>/<image>"),
    "no test": (without("test/"), "no images in test"),
    "no train": (without("train/"), "no images in train;"),
    "class missing in test": (without("test/bee"), "test lacks classes that train has: bee"),
    "class missing in train": (without("train/ant"), "train lacks classes that test has: ant"),
    "two tops": (folder_files("a/") | folder_files("b/"), "more than one image folder: a/train and b/train"),
    "control characters": (
        {name.replace("bee", "b\x1b[31m"): content for name, content in folder_files().items()},
        r"class name 'b\\x1b\[31m' has control characters",
    ),
}


@pytest.mark.parametrize("kind", sorted(WRONG_LAYOUTS))
def test_a_wrong_layout_is_an_error_that_says_what_is_wrong(kind: str, tmp_path: Path) -> None:
    files, message = WRONG_LAYOUTS[kind]
    with pytest.raises(DataError, match=message):
        load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")


def test_images_elsewhere_are_not_used_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = folder_files() | {"val/ant/0.png": picture(0), "logo.png": b"not even an image"}
    data = load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")
    assert len(data.train_images) == 6
    assert "2 images outside train and test are not used, first val/ant/0.png" in capsys.readouterr().err


def test_links_are_followed_in_a_directory_but_not_in_circles(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "a", folder_files())
    (root / "train/ant/9.png").symlink_to(root / "test/bee/0.png")
    (root / "train/ant/loop").symlink_to(root)
    (root / "test/cat").symlink_to(root / "test/ant")
    (root / "train/cat").symlink_to(root / "test/ant")
    data = load_data(root, cache_dir=tmp_path / "cache")
    assert torch.equal(data.train_images[3], data.test_images[2])
    assert data.classes == ("ant", "bee", "cat")
    assert len(data.train_images) == 9


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    """More than one batch of the decoding pool."""
    files = folder_files(train=150, test=1)
    data = load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")
    names = sorted(name for name in files if name.startswith("train/"))
    expected = np.stack([pixels_of(files[name]) for name in names])
    assert np.array_equal(data.train_images.numpy(), expected.transpose(0, 3, 1, 2))


def test_a_folder_without_train_and_test_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "holiday" / "deep" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has neither train nor test in it; an image folder holds"):
        load_data(tmp_path, cache_dir=tmp_path / "cache")


def test_images_of_any_size_are_scaled_and_cut_to_one(tmp_path: Path) -> None:
    """Left black, right white, grey beyond the middle square: sides keep their proportion, and the middle is taken."""
    from io import BytesIO

    from PIL import Image

    files = folder_files(train=1, test=1)
    for name, (width, height) in {"train/ant/5": (40, 16), "train/bee/5": (9, 33), "test/bee/5": (8, 8)}.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, width // 2 :] = 255
        pixels[:, : (width - height) // 2 if width > height else 0] = pixels[:, (width + height) // 2 :] = 127
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        files[f"{name}.png"] = buffer.getvalue()
    source = write_tar(tmp_path / "photos.tar", files)
    with pytest.raises(DataError, match=r"of an odd size.*--image-size 224"):
        load_data(source, cache_dir=tmp_path / "cache")
    data = load_data(source, cache_dir=tmp_path / "cache", image_size=8)
    assert data.name == "photos, 8×8"
    assert data.train_images.shape == (4, 3, 8, 8) and data.test_images.shape == (3, 3, 8, 8)
    wide, tall, same = data.train_images[1], data.train_images[3], data.test_images[2]
    assert same[0, 0].tolist() == [0] * 4 + [255] * 4
    for image in (wide, tall):
        assert image.unique(dim=1).shape[1] == 1  # every row is the same
        assert image[0, 0, 1:3].tolist() == [0, 0] and image[0, 0, 5:7].tolist() == [255, 255]
        assert image[0, 0, 0] < 32 and image[0, 0, 7] > 223  # a little grey, where pixels are means of what is cut
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    again = load_data(source, cache_dir=tmp_path / "cache", image_size=8)
    assert again.name == data.name and torch.equal(again.train_images, data.train_images)
    assert load_data(source, cache_dir=tmp_path / "cache", image_size=16).train_images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("side", [0, 3, 1025])
def test_a_size_that_no_network_takes_is_refused(side: int, tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", folder_files())
    with pytest.raises(DataError, match=rf"{side}×{side} pixels: the side is to be from 4 to 1024"):
        load_data(source, cache_dir=tmp_path / "cache", image_size=side)
    assert not (tmp_path / "cache").exists()


def test_the_sets_of_one_size_are_scaled_as_well(tmp_path: Path) -> None:
    from tests.data.samples import cifar_files

    files, *_ = cifar_files("cifar10-python")
    source = write_tar(tmp_path / "cifar-10-python.tar.gz", files, "gz")
    data = load_data(source, cache_dir=tmp_path / "cache", image_size=64)
    assert data.name == "CIFAR-10, 64×64" and data.train_images.shape[1:] == (3, 64, 64)
    plain = load_data(source, cache_dir=tmp_path / "cache")
    assert plain.name == "CIFAR-10" and plain.train_images.shape[1:] == (3, 32, 32)
    shrunk = load_data(source, cache_dir=tmp_path / "cache", image_size=16)
    blocks = plain.train_images.double().unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5))
    assert (shrunk.train_images.double() - blocks).abs().mean() < 15  # of noise with a spread of 74: means of areas
    digits = load_data("digits", image_size=16)
    assert digits.train_images.shape == (1437, 1, 16, 16) and digits.name == "UCI digits, 16×16"
    assert digits.mean == pytest.approx(load_data("digits").mean, abs=0.02)
