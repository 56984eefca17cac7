"""ImageData, its split, the embedded digits, and the words for what is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.data import ImageData, load_data
from prunus.data.dataset import channel_statistics, stratified_choice
from prunus.errors import DataError


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


def test_digits_are_all_there(digits: ImageData) -> None:
    assert digits.name == "UCI digits"
    assert digits.classes == tuple("0123456789")
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64
    counts = torch.bincount(torch.cat([digits.train_labels, digits.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    assert int(digits.train_images.max()) == 255
    assert len(digits.train_images.unique()) == 17


def test_digits_look_like_digits(digits: ImageData) -> None:
    """The nearest class average finds nine in ten: images and labels belong together."""
    flat = digits.train_images.flatten(1).float()
    centres = torch.stack([flat[digits.train_labels == label].mean(0) for label in range(10)])
    found = torch.cdist(digits.test_images.flatten(1).float(), centres).argmin(1)
    assert (found == digits.test_labels).float().mean() > 0.85


def test_digits_carry_their_attribution() -> None:
    import prunus.data.digits as module

    text = Path(module.__file__).with_name("digits.md").read_text()
    for part in ("E. Alpaydin and C. Kaynak", "10.24432/C50P49", "Creative Commons Attribution 4.0"):
        assert part in text


def test_digits_need_no_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import prunus.data as d; d.load_data('digits')"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("validation", "size"), [(0.1, 144), (0.5, 718), (100, 100), (1, 1), (1436, 1436)])
def test_a_split_parts_the_training_images(digits: ImageData, validation: int | float, size: int) -> None:
    split = digits.split(validation, seed=3)
    assert len(split.val_images) == len(split.val_labels) == size
    rows = [tuple(image.flatten().tolist()) for image in (*split.train_images, *split.val_images)]
    assert sorted(rows) == sorted(tuple(image.flatten().tolist()) for image in digits.train_images)
    per_class = torch.bincount(split.val_labels, minlength=10)
    expected = torch.bincount(digits.train_labels) * size / len(digits.train_labels)
    assert ((per_class - expected).abs() < 1).all()


def test_a_split_keeps_images_with_their_labels(digits: ImageData) -> None:
    label_of = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(digits.train_images, digits.train_labels, strict=True)
    }
    split = digits.split(0.2, seed=1)
    for image, label in zip(split.val_images, split.val_labels, strict=True):
        assert label_of[tuple(image.flatten().tolist())] == int(label)


def test_the_seed_decides_the_split(digits: ImageData) -> None:
    first, again, other = digits.split(0.1, 5), digits.split(0.1, 5), digits.split(0.1, 6)
    assert torch.equal(first.val_images, again.val_images)
    assert torch.equal(first.train_labels, again.train_labels)
    assert not torch.equal(first.val_images, other.val_images)


@pytest.mark.parametrize("validation", [0, 0.0, 1.0, 1437, -5, 1.5, 1e-9])
def test_an_empty_part_is_an_error(digits: ImageData, validation: int | float) -> None:
    with pytest.raises(DataError, match=r"UCI digits: cannot hold out .* of 1437 training images.*from 1 to 1436"):
        digits.split(validation)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data(), st.integers(0, 2**40))
def test_a_choice_has_every_class_in_proportion(labels: list[int], data: st.DataObject, seed: int) -> None:
    size = data.draw(st.integers(0, len(labels)))
    tensor = torch.tensor(labels)
    chosen = stratified_choice(tensor, size, seed)
    assert int(chosen.sum()) == size
    for label in set(labels):
        share = labels.count(label) * size / len(labels)
        assert abs(int(chosen[tensor == label].sum()) - share) < 1


def test_a_constant_channel_can_be_normalised() -> None:
    assert channel_statistics(np.full((3, 1, 2, 2), 51, dtype=np.uint8)) == ((0.2,), (1.0,))


@pytest.mark.parametrize(("spec", "hint"), [("cifar-10", "Did you mean 'cifar10'"), ("digit", "Did you mean 'digits'")])
def test_an_unknown_name_gets_the_near_match(spec: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no data set '{spec}'.*digits, cifar10, cifar100.*{hint}"):
        load_data(spec, cache_dir=tmp_path)


@pytest.mark.parametrize("spec", ["", "/dev/null", "a\0b", "x" * 5000])
def test_what_cannot_be_opened_is_one_error(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        load_data(spec, cache_dir=tmp_path / "cache")
