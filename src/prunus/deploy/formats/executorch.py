"""ExecuTorch: a .pte file for phones and boards, its operations given to XNNPACK, with a description beside it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from prunus.deploy.capturing import Captured, quietly
from prunus.deploy.comparing import Samples, inputs
from prunus.deploy.file_info import FileInfo, installed_versions, read_side_file, write_side_file
from prunus.deploy.formats.silence import silent
from prunus.deploy.runner import Array, Runner
from prunus.errors import FileFormatError, ModelError
from prunus.files import atomic_write_bytes

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(captured: Captured, path: Path, info: FileInfo) -> tuple[Path, ...]:
    """Write the .pte file, for one image, and its description.

    Raises:
        ModelError: ExecuTorch cannot lower the network.
    """
    return _store(captured.single, path, info)


def write_int8(captured: Captured, path: Path, info: FileInfo, calibration: Samples) -> tuple[Path, ...]:
    """Write the .pte file with 8-bit integers, through PT2E, as XNNPACK wants them.

    Weights are int8, symmetric, with a scale for every output channel; activations int8 with one scale a tensor, which
    is measured on `calibration`.

    Raises:
        ModelError: the network cannot be quantised, or ExecuTorch cannot lower it.
    """
    with quietly(), silent(), torch.no_grad():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        try:
            quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
            observed = prepare_pt2e(captured.program.module(check_guards=False), quantizer)
            for batch in inputs(calibration, None if captured.any_batch else 1):
                observed(torch.from_numpy(batch))
            program = torch.export.export(convert_pt2e(observed), (captured.example[:1],))
        except Exception as error:  # whatever its passes trip over
            raise ModelError(f"PT2E cannot quantise the network: {_said(error)}") from error
    return _store(program, path, info, "torchao")


def _store(program: ExportedProgram, path: Path, info: FileInfo, *packages: str) -> tuple[Path, ...]:
    with quietly(), silent():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        logging.getLogger("executorch").setLevel(logging.ERROR)
        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            content = bytes(lowered.to_executorch().buffer)
        except Exception as error:  # whatever its passes trip over
            raise ModelError(f"ExecuTorch cannot lower the network: {_said(error)}") from error
    atomic_write_bytes(path, content)
    side = _beside(path)
    versions = installed_versions("torch", "executorch", *packages)
    write_side_file(info.model_copy(update={"versions": versions, "batch": 1}), side, (path,))
    return path, side


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def open_file(path: Path, threads: int) -> Runner:
    """Open a .pte file that `write` wrote; the number of threads holds for all of them in the process."""
    info = read_side_file(_beside(path), (path,))
    with quietly(), silent():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

        portable_lib._unsafe_reset_threadpool(threads)
        try:
            program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
            method = program.load_method("forward")
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise FileFormatError(f"the file {path} does not fit this ExecuTorch: {reason}; export it again") from error

    def infer(images: Array) -> Array:
        return np.array(method.execute([torch.from_numpy(images)])[0].numpy(), dtype=np.float32)

    version = installed_versions("executorch").get("executorch", "")
    return Runner(info, f"ExecuTorch {version}", infer)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
