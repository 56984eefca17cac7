"""The formats that Prunus exports to: one line each, what it is called, how it is written and how it is opened.

Another one is a module with `write` and `open_file`, and a line in FORMATS.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prunus.deploy.capturing import Captured
from prunus.deploy.comparing import Samples
from prunus.deploy.file_info import FileInfo
from prunus.deploy.formats import executorch, litert, ncnn, onnx, onnx_int8, own, pt2
from prunus.deploy.runner import Runner
from prunus.errors import ConfigError, FileFormatError

Write = Callable[[Captured, Path, FileInfo], tuple[Path, ...]]
WriteInt8 = Callable[[Captured, Path, FileInfo, Samples], tuple[Path, ...]]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: what `--to` calls it.
        runtime: what `--runtime` calls the runtime that opens it.
        suffix: end of the file's name.
        extra: the extra of Prunus that brings what it needs, "" for none.
        writing: modules that must be there to write one.
        running: modules that must be there to open one.
        write: writes a captured network with its description to a path, and returns every file it wrote, the one to
            open first; None where files are made another way.
        open: opens a file in its runtime, on so many threads.
        beside: ends of the names of files that belong to it.
        half_weights: whether weights can be stored as float16.
        write_int8: writes it with 8-bit integers, its ranges from the images that are given last; None where Prunus
            does not.
    """

    name: str
    runtime: str
    suffix: str
    extra: str
    writing: tuple[str, ...]
    running: tuple[str, ...]
    write: Write | None
    open: Callable[[Path, int], Runner]
    beside: tuple[str, ...] = ()
    half_weights: bool = False
    write_int8: WriteInt8 | None = None


FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        Format(
            name="onnx",
            runtime="ort",
            suffix=".onnx",
            extra="onnx",
            writing=("onnx", "onnxscript", "onnxruntime"),
            running=("onnxruntime",),
            write=onnx.write,
            open=onnx.open_file,
            write_int8=onnx_int8.write_int8,
        ),
        Format(
            name="executorch",
            runtime="executorch",
            suffix=".pte",
            extra="executorch",
            writing=("executorch", "torchao"),
            running=("executorch.runtime",),
            write=executorch.write,
            open=executorch.open_file,
            beside=(".pte.json",),
            write_int8=executorch.write_int8,
        ),
        Format(
            name="litert",
            runtime="litert",
            suffix=".tflite",
            extra="litert",
            writing=("ai_edge_litert",),  # the converter may be elsewhere
            running=("ai_edge_litert.interpreter",),
            write=litert.write,
            open=litert.open_file,
            write_int8=litert.write_int8,
            beside=(".tflite.json",),
        ),
        Format(
            name="ncnn",
            runtime="ncnn",
            suffix=".ncnn.param",
            extra="ncnn",
            writing=("ncnn", "pnnx"),
            running=("ncnn",),
            write=ncnn.write,
            open=ncnn.open_file,
            beside=(".ncnn.bin", ".ncnn.json"),
            half_weights=True,
        ),
        Format(
            name="pt2",
            runtime="torch",
            suffix=".pt2",
            extra="",
            writing=(),
            running=("torch.export.pt2_archive",),
            write=pt2.write,
            open=pt2.open_file,
        ),
        Format(
            name="safetensors",
            runtime="torch",
            suffix=".safetensors",
            extra="",
            writing=(),
            running=(),
            write=None,  # by prunus.save, from the network itself
            open=own.open_file,
        ),
    )
}
WRITTEN = tuple(name for name, found in FORMATS.items() if found.write)
"""Formats that `prunus export` writes."""


def find_format(name: str) -> Format:
    """Look up a format that can be written, with what it needs.

    Raises:
        ConfigError: there is no such format, or what writes it is not installed.
    """
    if name not in WRITTEN:
        near = difflib.get_close_matches(name.lower(), WRITTEN, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--to {name}: there is no such format.{hint} The formats are: {', '.join(WRITTEN)}.")
    found = FORMATS[name]
    _require(found, found.writing, f"--to {name}")
    return found


def open_exported(path: str | Path, threads: int = 1) -> Runner:
    """Open an exported file, or a model file of Prunus, in its own runtime, without running code that it may hold.

    Args:
        path: the file; of several that belong together, the one that the format names.
        threads: CPU threads within an operator.

    Raises:
        FileFormatError: it is no such file, cut short, damaged or hostile.
        ConfigError: its runtime is not installed.
    """
    path = Path(path)
    found = format_of(path)
    if not path.is_file():
        raise FileFormatError(f"no file at {path}: there is no such file")
    _require(found, found.running, str(path))
    return found.open(path, threads)


def format_of(path: str | Path) -> Format:
    """Tell a file's format by its name.

    Raises:
        FileFormatError: the name ends like none of them.
    """
    for found in FORMATS.values():
        if Path(path).name.endswith(found.suffix):
            return found
    suffixes = ", ".join(found.suffix for found in FORMATS.values())
    raise FileFormatError(f"{path} has none of the endings that Prunus opens: {suffixes}")


def files_of(path: Path) -> tuple[Path, ...]:
    """Return a file and those beside it that belong to it, which are not always there."""
    found = format_of(path)
    stem = path.name.removesuffix(found.suffix)
    beside = (path.with_name(stem + suffix) for suffix in found.beside)
    return (path, *(file for file in beside if file.is_file()))


def _require(found: Format, modules: Iterable[str], where: str) -> None:
    missing = [name for name in dict.fromkeys(module.split(".")[0] for module in modules) if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{where} needs {', '.join(missing)}, not installed here: pip install 'prunus[{found.extra}]'"
        )
