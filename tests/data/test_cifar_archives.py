"""The official CIFAR archives, whole, unpacked, damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.data.samples import cifar_files, write_tar, write_tree

from prunus.data import load_data
from prunus.errors import DataError

VERSIONS = ["cifar10-binary", "cifar10-python", "cifar100-binary", "cifar100-python"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_images_and_labels_are_those_of_the_archive(version: str, packed: bool, tmp_path: Path) -> None:
    files, pixels, labels = cifar_files(version)
    folder = next(iter(files)).split("/")[0]
    source = write_tar(tmp_path / "a.tar.gz", files, "gz") if packed else write_tree(tmp_path, files) / folder
    data = load_data(source, cache_dir=tmp_path / "cache")
    assert data.name == {"10": "CIFAR-10", "100": "CIFAR-100"}[version[5:].split("-")[0]]
    assert np.array_equal(data.train_images.numpy(), pixels)
    assert np.array_equal(data.train_labels.numpy(), labels)
    assert len(data.test_images) == 3
    assert data.classes[3] == "class 3"
    assert len(data.classes) == (10 if data.name == "CIFAR-10" else 100)


def test_pickles_by_python_3_are_read_too(tmp_path: Path) -> None:
    files, pixels, labels = cifar_files("cifar10-python", python3=True)
    data = load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")
    assert np.array_equal(data.train_images.numpy(), pixels)
    assert np.array_equal(data.train_labels.numpy(), labels)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_file_is_named(version: str, tmp_path: Path) -> None:
    files, _, _ = cifar_files(version)
    gone = next(name for name in files if "test" in name)
    del files[gone]
    with pytest.raises(DataError, match=f"lacks {gone.split('/')[1]} of CIFAR-10"):
        load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_cut_short_is_named(version: str, tmp_path: Path) -> None:
    files, _, _ = cifar_files(version)
    short = next(name for name in files if "test" in name)
    files[short] = files[short][:-5]
    with pytest.raises(DataError, match=rf"{short.split('/')[1]} in .*a\.tar cannot be used"):
        load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")


def test_a_label_out_of_range_is_an_error(tmp_path: Path) -> None:
    files, _, _ = cifar_files("cifar10-binary")
    name = "cifar-10-batches-bin/data_batch_2.bin"
    files[name] = files[name][:3073] + b"\x0a" + files[name][3074:]
    with pytest.raises(DataError, match=r"data_batch_2\.bin.*label of image 1 is 10, expected a number from 0 to 9"):
        load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")


def test_class_names_are_counted(tmp_path: Path) -> None:
    files, _, _ = cifar_files("cifar100-binary")
    files["cifar-100-binary/fine_label_names.txt"] = b"apple\n"
    with pytest.raises(DataError, match=r"fine_label_names\.txt.* has 1 proper class names, expected 100"):
        load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")
