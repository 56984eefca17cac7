"""What a .pt2 file may hold before torch reads it.

torch.export.load trusts its file: it unpickles example inputs and some constants, resolves operations by walking
Python's modules, and hands expressions to sympy, which evaluates them. In a file from elsewhere all that may run code.
So an archive is taken apart, only what a network is made of is let through, and the rest is left out or refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from prunus.deploy.file_info import INFO_KEY
from prunus.errors import FileFormatError

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_VALUES = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")
_DROPPED = re.compile(r"\.data/\w+|byteorder|archive_format|archive_version|data/sample_inputs/model\.pt|extra/\w+")

_OPERATION = re.compile(
    r"torch\.ops\.(?:aten|quantized_decomposed)\.(?!from_file\b)\w+\.\w+"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge)"
    r"|torch\.sym_(?:sum|max|min|int|float|not)"
)
_WORDS = (
    "Symbol Integer Rational Add Mul Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv IntTrueDiv "
    "positive nonnegative integer True"
).replace(" ", "|")
_EXPRESSION = re.compile(rf"(?:\b(?:{_WORDS}|[su]\d{{1,6}}|\d{{1,12}})\b|'[su]\d{{1,6}}'|[-+*/(),= ])*")
_SYMBOL = re.compile(r"[su]\d{1,6}")
_TREES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})
_REFUSED_KEYS = frozenset({"as_operator", "as_custom_obj", "as_opaque_obj"})


def checked_archive(data: bytes, path: Path) -> tuple[bytes, io.BytesIO]:
    """Return the description in a .pt2 file, and an archive that torch.export.load may read.

    Raises:
        FileFormatError: it is no .pt2 file, was cut short, holds code, or lacks the description.
    """
    members = _members(data, path)
    description = members.get(f"extra/{INFO_KEY}")
    if description is None:
        raise FileFormatError(f"the .pt2 file {path} has no description by Prunus: it was written by something else")
    kept = {name: content for name, content in members.items() if not _DROPPED.fullmatch(name)}
    for name in kept:
        if name not in (_MODEL, *_CONFIGS) and not _VALUES.fullmatch(name):
            _refuse(path, f"{name!r}, which no network needs")
    for name in (_MODEL, *_CONFIGS):
        if name not in kept:
            raise FileFormatError(f"the .pt2 file {path} lacks {name}")
        kept[name] = json.dumps(_checked(kept[name], name, path)).encode()
    from torch.export.pt2_archive import PT2ArchiveWriter  # a second to import

    samples = io.BytesIO()
    torch.save(((torch.zeros(1),), {}), samples)  # in the place of the file's, which are a pickle
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, content in {**kept, _SAMPLES: samples.getvalue()}.items():
            writer.write_bytes(name, content)
    buffer.seek(0)
    return description, buffer


def _members(data: bytes, path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                _refuse(path, "compressed members, which torch does not write")
            if sum(entry.file_size for entry in entries) > len(data):
                _refuse(path, "members that overlap")
            return {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        raise FileFormatError(f"the .pt2 file {path} is cut short, damaged or no .pt2 file: {error}") from error


def _checked(content: bytes, name: str, path: Path) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"the .pt2 file {path} is damaged: {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"the .pt2 file {path} is damaged: {name} is no table")
    for key, found in _entries(value):
        _check_entry(key, found, path)
    if name == _MODEL:
        value["guards_code"] = []
        for symbol in value.get("range_constraints", {}):
            if not _SYMBOL.fullmatch(str(symbol)):
                _refuse(path, f"the symbol {str(symbol)[:80]!r}")
    return value


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """List every key of every table, however deep; the tables of an operation lose what they say of its origin."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if "target" in found and isinstance(found.get("metadata"), dict):
                found["metadata"] = {}
            yield from found.items()
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _check_entry(key: str, found: Any, path: Path) -> None:
    if key == "target" and not (isinstance(found, str) and _OPERATION.fullmatch(found)):
        _refuse(path, f"the operation {str(found)[:80]!r}")
    if key == "expr_str" and not (isinstance(found, str) and _EXPRESSION.fullmatch(found) and "**" not in found):
        _refuse(path, f"the expression {str(found)[:80]!r}")
    if key in _REFUSED_KEYS:
        _refuse(path, f"an argument of the kind {key}")
    if key == "use_pickle" and found is not False:
        _refuse(path, "a pickle")
    if key == "path_name" and not (isinstance(found, str) and re.fullmatch(r"(?:weight|tensor)_\d+", found)):
        _refuse(path, f"a constant in {str(found)[:80]!r}")
    if key == "treespec_namedtuple_fields" and found:
        _refuse(path, "named tuples")
    if key in ("in_spec", "out_spec") and found:
        _check_tree(found, path)


def _check_tree(text: Any, path: Path) -> None:
    """Let only nests of tuples, lists and dicts through: other kinds are looked up by their names in Python."""
    try:
        for key, found in _entries(json.loads(text)[1]):
            if key == "type" and found not in _TREES:
                _refuse(path, f"an argument of the type {str(found)[:80]!r}")
    except (ValueError, TypeError, LookupError, RecursionError):
        _refuse(path, "arguments of no known form")


def _refuse(path: Path, what: str) -> None:
    raise FileFormatError(f"the .pt2 file {path} holds {what}: it might run code, and is not opened")
