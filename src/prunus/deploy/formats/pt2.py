"""torch.export's own files, run by PyTorch. What is read from one is checked first: see `pt2_checks`."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from prunus.deploy.capturing import Captured, quietly
from prunus.deploy.file_info import INFO_KEY, FileInfo, installed_versions, parse_info
from prunus.deploy.formats.own import torch_call
from prunus.deploy.formats.pt2_checks import checked_archive
from prunus.deploy.runner import Runner
from prunus.errors import FileFormatError
from prunus.files import atomic_write_bytes, read_bytes


def write(captured: Captured, path: Path, info: FileInfo) -> tuple[Path, ...]:
    """Write one .pt2 file; the description is its extra file "prunus"."""
    versions = installed_versions("torch")
    described = info.model_copy(update={"versions": versions, "batch": None if captured.any_batch else 1})
    buffer = io.BytesIO()
    with quietly():
        torch.export.save(captured.program, buffer, extra_files={INFO_KEY: described.encode()})
    atomic_write_bytes(path, buffer.getvalue())
    return (path,)


def open_file(path: Path, threads: int) -> Runner:
    """Open a .pt2 file that `write` wrote; pickles in it are never read."""
    text, buffer = checked_archive(read_bytes(path, ".pt2 file"), path)
    info = parse_info(text, path)
    try:
        with quietly():
            module = torch.export.load(buffer).module(check_guards=False)
    except Exception as error:  # whatever torch trips over
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFormatError(f"the .pt2 file {path} is damaged, or of another version of torch: {reason}") from error
    return Runner(info, f"PyTorch {torch.__version__}", torch_call(module, threads))
