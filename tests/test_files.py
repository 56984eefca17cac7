from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunus.errors import FileFormatError, RunError
from prunus.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    file_sha256,
    load_tensors,
    read_json,
    save_tensors,
)

TENSORS = {
    "weight": torch.arange(24, dtype=torch.float32).reshape(1, 2, 3, 4),
    "count": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "state": torch.arange(5, dtype=torch.uint8),
    "nothing": torch.empty(0, 3),
}


def saved(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "a.safetensors", TENSORS, {"b": "ünï\n", "a": "2"})
    return tmp_path / "a.safetensors"


def test_write_makes_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "file.txt"
    atomic_write_text(path, "old")
    atomic_write_text(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    atomic_write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*file\.json: No space left"):
        atomic_write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        atomic_write_bytes(tmp_path, b"")
    with pytest.raises(FileFormatError, match="cannot read the plan"):
        read_json(tmp_path, "plan")


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe\x00", b"[" * 200_000, b"9" * 10_000, b"hello"])
def test_json_that_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"the plan .*plan\.json is not valid JSON: ."):
        read_json(path, "plan")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no plan at .*none\.json"):
        read_json(tmp_path / "none.json", "plan")
    with pytest.raises(FileFormatError, match=r"no checkpoint at .*none\.safetensors"):
        load_tensors(tmp_path / "none.safetensors", "checkpoint")


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors, metadata = load_tensors(saved(tmp_path))
    assert metadata == {"b": "ünï\n", "a": "2"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
        tensors[name].zero_()  # writable, and its own memory


def test_memory_format_and_sharing_leave_no_trace(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2)
    save_tensors(tmp_path / "a", {"w": weight, "v": weight.clone()}, {})
    save_tensors(tmp_path / "b", {"v": weight, "w": weight.to(memory_format=torch.channels_last)}, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from prunus.files import save_tensors;"
        "save_tensors(sys.argv[1], {'t': torch.ones(2)}, {str(i): 'x' for i in range(20)})"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")


def test_other_tools_read_the_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved(tmp_path), framework="pt") as file:
        assert file.metadata()["a"] == "2"
        assert torch.equal(file.get_tensor("weight"), TENSORS["weight"])


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "plain")
    tensors, metadata = load_tensors(tmp_path / "plain")
    assert torch.equal(tensors["w"], torch.ones(2))
    assert metadata == {}


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            FileFormatError, match=r"the checkpoint .*a\.safetensors is cut short or not a safetensors file"
        ):
            load_tensors(path, "checkpoint")


def test_any_changed_byte_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    assert json.loads(whole[8:header_end])
    key = whole.index(b'"sha256"')  # a damaged key makes it a file without a checksum, its tensors being whole
    for position in sorted({*range(0, len(whole), 7), *range(header_end, len(whole))} - {*range(key, key + 8)}):
        changed = bytearray(whole)
        changed[position] ^= 0x04  # not the bit that turns one JSON space into another
        path.write_bytes(changed)
        with pytest.raises(FileFormatError, match=r"a\.safetensors"):
            load_tensors(path)


def test_the_checksum_key_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sha256"):
        save_tensors(tmp_path / "a", {}, {"sha256": "0"})
