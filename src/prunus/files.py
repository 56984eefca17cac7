"""Files that are either whole or not there: atomic writes, and reads that say what is wrong.

Every file of a run goes through here. Writing makes a temporary file in the same folder, flushes it to the disk and
renames it, so that a process that dies leaves the old file or the new one. Tensors are stored as safetensors with a
SHA-256 over names, shapes, values and metadata; equal content gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors

from prunus.errors import FileFormatError, RunError
from prunus.limits import advice

TEMPORARY = f".*.{'[0-9a-f]' * 8}.tmp"
"""Pattern of the names of files that are being written."""

_HEADER_ALIGNMENT = 8  # bytes; what the safetensors format asks of its header
_DIGEST = "sha256"  # metadata key of the checksum
_MAX_HEADER_BYTES = 100 * 2**20
_PART_BYTES = 16 * 2**20
_KINDS = {"U8": np.uint8, "I64": np.int64}  # what image sets are made of


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that readers see the old file or the new one, never a part; parent folders are made.

    Raises:
        RunError: the file cannot be written (no permission, no space, a folder in its place).
    """
    _atomic_write(Path(path), lambda file: file.write(data))


def _atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; {advice(error)}") from error


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, as `atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | Path, obj: object) -> None:
    """Write `obj` as indented JSON, as `atomic_write_bytes` does; NaN and infinity are a ValueError: JSON has none."""
    atomic_write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def read_bytes(path: str | Path, what: str = "file") -> bytes:
    """Read all of `path`; FileFormatError where there is no readable file. `what` names the kind of file."""
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileFormatError(f"no {what} at {path}: there is no such file") from error
    except OSError as error:
        raise FileFormatError(f"cannot read the {what} {path}: {error.strerror or error}") from error


def read_json(path: str | Path, what: str = "JSON file") -> Any:
    """Read the JSON value in `path`.

    Raises:
        FileFormatError: the file is missing, cut short or not JSON; the message names it, its kind and the cause.
    """
    data = read_bytes(path, what)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested beyond reason
        raise FileFormatError(f"the {what} {path} is not valid JSON: {error}") from error


def file_sha256(path: str | Path) -> str:
    """Hash a file with SHA-256: 64 hexadecimal digits, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a safetensors file, atomically, with a checksum that `load_tensors` compares.

    The order of the arguments' keys, the device and the memory format leave no trace in the file. Tensors that share
    memory are written out one by one. The metadata key "sha256" is taken.
    """
    if _DIGEST in metadata:
        raise ValueError(f"the metadata key {_DIGEST!r} is written by save_tensors itself")
    encoded = encode_tensors({name: _own_copy(tensor) for name, tensor in tensors.items()})
    header, body = _split(encoded)
    header["__metadata__"] = dict(metadata)
    header["__metadata__"][_DIGEST] = _digest(header, body)
    atomic_write_bytes(path, _join(header, body))


def save_large_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file that `save_tensors` would, a part at a time, so that tensors may be larger than the memory."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in ordered:
        empty = encode_tensors({name: tensors[name][:0]})  # says how the type is called
        start, end = end, end + tensors[name].nbytes
        shape, kind = list(tensors[name].shape), _split(empty)[0][name]["dtype"]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    digest = hashlib.sha256(_header_text(header))
    for name in ordered:
        for part in _parts(tensors[name]):
            digest.update(part)
    header["__metadata__"][_DIGEST] = digest.hexdigest()

    def write(file: BinaryIO) -> None:
        file.write(_join(header, memoryview(b"")))
        for name in ordered:
            for part in _parts(tensors[name]):
                file.write(part)

    _atomic_write(Path(path), write)


def map_tensors(path: str | Path, what: str = "tensor file") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file as `load_tensors` does, but leave its tensors on the disk until they are looked at.

    What is written to the tensors stays in memory, and the file as it is.

    Raises:
        FileFormatError: as `load_tensors`; also where the file has no checksum.
    """
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, "c")
        header, _ = _split(data[: 8 + min(int.from_bytes(data[:8].tobytes(), "little"), _MAX_HEADER_BYTES)].tobytes())
        metadata: dict[str, str] = header.pop("__metadata__")
        body = data[8 + int.from_bytes(data[:8].tobytes(), "little") :]
        digest = hashlib.sha256(
            _header_text({**header, "__metadata__": {k: v for k, v in metadata.items() if k != _DIGEST}})
        )
        for part in _parts(torch.from_numpy(body)):
            digest.update(part)
        if digest.hexdigest() != metadata.pop(_DIGEST):
            raise FileFormatError(f"the {what} {path} is damaged: its content differs from its checksum")
        return {name: _mapped(body, entry) for name, entry in header.items()}, metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"the {what} {path} is cut short or not a safetensors file: {error}") from error


def _mapped(body: np.ndarray, entry: Mapping[str, Any]) -> torch.Tensor:
    start, end = entry["data_offsets"]
    kind = _KINDS[entry["dtype"]]
    return torch.from_numpy(body[start:end].view(kind).reshape(entry["shape"]))


def _parts(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Give the bytes of a contiguous tensor in pieces."""
    flat = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    for start in range(0, len(flat), _PART_BYTES):
        yield flat[start : start + _PART_BYTES].data


def load_tensors(path: str | Path, what: str = "tensor file") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors (onto the CPU) and the metadata of a safetensors file; nothing in it is executed.

    Raises:
        FileFormatError: the file is missing, cut short, not safetensors, or differs from its checksum (a file from
            elsewhere that carries no checksum is taken as it is).
    """
    data = read_bytes(path, what)
    try:
        tensors = decode_tensors(data)
        header, body = _split(data)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        RecursionError,
    ) as error:  # KeyError: a dtype that torch does not have
        raise FileFormatError(f"the {what} {path} is cut short or not a safetensors file: {error}") from error
    metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    digest = metadata.pop(_DIGEST, None)
    if digest is not None and digest != _digest({**header, "__metadata__": metadata}, body):
        raise FileFormatError(f"the {what} {path} is damaged: its content differs from its checksum")
    return tensors, metadata


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)


def _split(encoded: bytes) -> tuple[dict[str, Any], memoryview]:
    """Part a safetensors file into header and tensor bytes: 8 bytes of length, JSON, data."""
    end = 8 + int.from_bytes(encoded[:8], "little")
    return json.loads(encoded[8:end]), memoryview(encoded)[end:]


def _join(header: Mapping[str, Any], body: memoryview) -> bytes:
    text = _header_text(header)
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return b"".join((len(text).to_bytes(8, "little"), text, body))


def _header_text(header: Mapping[str, Any]) -> bytes:
    # Sorted, since the library writes metadata in an order that differs from process to process.
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(header: Mapping[str, Any], body: memoryview) -> str:
    digest = hashlib.sha256(_header_text(header))
    digest.update(body)
    return digest.hexdigest()
