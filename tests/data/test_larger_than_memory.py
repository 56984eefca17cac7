"""Image folders that are more than memory may hold: the same images, read from the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.samples import folder_files, picture, write_tar
from tests.data.test_image_cache import same

from prunus.data import load_data
from prunus.data.room import Room, disk_array
from prunus.data.rows import Rows
from prunus.errors import DataError, FileFormatError
from prunus.files import load_tensors, map_tensors, save_large_tensors, save_tensors

IMAGE_BYTES = 6 * 4 * 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", folder_files(train=9, test=4))


def test_the_images_are_the_same(source: Path, tmp_path: Path) -> None:
    in_memory = load_data(source, cache_dir=tmp_path / "memory")
    for memory_bytes in (0, 5 * IMAGE_BYTES):  # all on the disk, or what came after the first five
        folder = tmp_path / f"disk-{memory_bytes}"
        decoded = load_data(source, cache_dir=folder, memory_bytes=memory_bytes)
        again = load_data(source, cache_dir=folder, memory_bytes=memory_bytes)
        for data in (decoded, again):
            assert data.on_disk
            assert same(data, in_memory)
        assert [path.suffix for path in folder.iterdir()] == [".safetensors"]
        assert mapped_from(folder) >= 1
    assert not in_memory.on_disk
    assert same(load_data(source, cache_dir=folder), in_memory)
    assert not load_data(source, cache_dir=folder).on_disk


def mapped_from(folder: Path) -> int:
    """Count the mappings of this process that lie in files of a folder."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_split_takes_the_same_images(source: Path, tmp_path: Path) -> None:
    whole = load_data(source, cache_dir=tmp_path / "a").split(0.25, 3)
    parts = load_data(source, cache_dir=tmp_path / "b", memory_bytes=0).split(0.25, 3)
    for key in ("train", "val"):
        images, rows = getattr(whole, f"{key}_images"), getattr(parts, f"{key}_images")
        assert isinstance(rows, Rows)
        assert rows.shape == images.shape
        assert len(rows) == len(images)
        assert torch.equal(rows[1:3], images[1:3])
        assert torch.equal(rows[torch.tensor([2, 0])], images[[2, 0]])
        assert torch.equal(getattr(parts, f"{key}_labels"), getattr(whole, f"{key}_labels"))


def test_room_puts_what_is_too_much_on_the_disk(tmp_path: Path) -> None:
    room = Room(100, tmp_path, segment_bytes=150)
    arrays = [np.full((6, 10), number, np.uint8) for number in range(7)]
    kept = [room.keep(array) for array in arrays]
    assert kept[0] is arrays[0]
    assert all(isinstance(array, np.memmap) for array in kept[1:])
    assert all(np.array_equal(array, given) for array, given in zip(kept, arrays, strict=True))
    large = np.arange(400, dtype=np.uint8)
    assert np.array_equal(room.keep(large), large)
    assert not list(tmp_path.iterdir())


def test_no_room_on_the_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^1e\+06 GB of decoded images .* --cache-dir FOLDER$"):
        disk_array((10**15,), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_large_file_is_the_one_that_is_written_otherwise(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(300, dtype=torch.int64), "a": torch.arange(77, dtype=torch.uint8).view(7, 11)}
    save_tensors(tmp_path / "small", tensors, {"x": "y"})
    save_large_tensors(tmp_path / "large", tensors, {"x": "y"})
    assert (tmp_path / "small").read_bytes() == (tmp_path / "large").read_bytes()
    for found, metadata in (map_tensors(tmp_path / "large"), load_tensors(tmp_path / "large")):
        assert metadata == {"x": "y"}
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        found["a"].zero_()
    assert load_tensors(tmp_path / "large")[0]["a"].sum() > 0


def test_damaged_files_are_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_large_tensors(path, {"a": torch.arange(200, dtype=torch.uint8)}, {})
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": whole[:-1],
        "long": whole + b"x",
        "changed": whole[:-5] + b"\0" + whole[-4:],
        "short header": whole[:40],
        "huge header": (2**62).to_bytes(8, "little") + whole[8:],
        "no json": whole[:8] + b"x" + whole[9:],
    }
    for what, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=f"the tensor file {path} is") as error:
            map_tensors(path)
        assert "Traceback" not in str(error.value), what


@pytest.mark.slow
def test_a_run_on_images_from_the_disk_has_the_same_bits(tmp_path: Path) -> None:
    """Also where it is stopped within an epoch."""
    files = {
        f"{split}/{name}/{index}.png": picture(17 * index + 90 * label, size=(12, 12))
        for split, count in (("train", 70), ("test", 6))
        for label, name in enumerate(("ant", "bee", "cat"))
        for index in range(count)
    }
    source = write_tar(tmp_path / "a.tar", files)

    def run(name: str, *arguments: str) -> dict[str, object]:
        out = tmp_path / name
        command = [sys.executable, "-m", "prunus", "compress", "--model", "resnet8", "--data", str(source)]
        command += ["--macs", "0.5", "--epochs", "2", "--finetune-epochs", "1", "--threads", "1", "--batch-size", "16"]
        command += ["--calibration-images", "64", "--out", str(out), "--cache-dir", str(tmp_path / f"cache-{name}")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        while True:
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
            if done.returncode != 3:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return {"model": (out / "model.safetensors").read_bytes(), "losses": [row["loss"] for row in rows]}

    assert run("disk", "--image-memory", "0", "--max-minutes", "0.05") == run("memory")
