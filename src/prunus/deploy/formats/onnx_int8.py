"""ONNX with 8-bit integers: ONNX Runtime's static quantisation, its ranges measured on images that are given."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunus.deploy.capturing import Captured, quietly
from prunus.deploy.comparing import Samples, inputs
from prunus.deploy.file_info import INFO_KEY, FileInfo
from prunus.deploy.formats.onnx import INPUT, described, exported_program
from prunus.deploy.runner import Array
from prunus.errors import ModelError
from prunus.files import atomic_write_bytes


def write_int8(captured: Captured, path: Path, info: FileInfo, calibration: Samples) -> tuple[Path, ...]:
    """Write one .onnx file with QuantizeLinear and DequantizeLinear around its operations.

    Weights are int8, symmetric, with a scale for every output channel; activations uint8 with one scale a tensor, from
    the smallest to the largest value met on `calibration`: with them x86 and ARM take their quick integer kernels. Of
    the weights' 256 values only 129 are used: x86 without VNNI adds two products of 8 bits in 16, and what does not fit
    is cut off. The logits stay float32, since 256 levels would make ties.

    Raises:
        ModelError: the network cannot be written as ONNX, or ONNX Runtime cannot quantise it.
    """
    program = exported_program(captured)
    atomic_write_bytes(path, encode(program, quantized(program, captured, calibration), captured, info))
    return (path,)


def quantized(
    program: Any, captured: Captured, calibration: Samples, grids: Mapping[str, tuple[float, int]] | None = None
) -> Any:
    """Return the ONNX model of a program with 8-bit integers, tensors under the program's names.

    Args:
        program: what `exported_program` made of `captured`.
        captured: the network.
        calibration: images whose activations' ranges decide what the integers stand for.
        grids: scale and zero point of activations, by name, that are not to be measured.

    Raises:
        ModelError: ONNX Runtime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.ModelProto()
    model.CopyFrom(program.model_proto)
    add_pre_process_metadata(model)  # the exporter has optimised it, and knows its shapes
    options: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": _last_operations(model)}
    if grids:
        options["TensorQuantOverrides"] = {
            name: [{"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}]
            for name, (scale, zero) in grids.items()
        }
    size = None if captured.any_batch else 1
    with tempfile.TemporaryDirectory() as folder, quietly(), _unlogged():
        target = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                model,
                target,
                _Reader(inputs(calibration, size)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options=options,
            )
        except Exception as error:  # whatever its passes trip over
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"ONNX Runtime cannot quantise the network: {reason}") from error
        return onnx.load(target)


def encode(program: Any, model: Any, captured: Captured, info: FileInfo) -> bytes:
    """Write what `quantized` returned as the content of a .onnx file, made slim and with its description."""
    import onnx

    info = described(program, captured, info, "torch", "onnx", "onnxscript", "onnxruntime")
    onnx.helper.set_model_props(model, {INFO_KEY: info.encode()})
    content: bytes = slim(model).SerializeToString()
    return content


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep from the user what ONNX Runtime logs, under no name of its own, of weights that have no axis of channels."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class _Reader:
    """What ONNX Runtime asks for inputs."""

    batches: Iterator[Array]

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def _last_operations(model: Any) -> list[str]:
    """Return the kind of operation that makes the logits, if it is one that only classifiers end in."""
    ends = {output.name for output in model.graph.output}
    kinds = {node.op_type for node in model.graph.node if ends.intersection(node.output)}
    return sorted(kinds & {"Gemm", "MatMul"})


def slim(model: Any) -> Any:
    """Shorten a quantised model in place: in small networks names and repeated zero points are a third of the bytes.

    Shapes of intermediate tensors and names of nodes go, tensors get short names, and equal constants are stored once.
    """
    graph = model.graph
    del graph.value_info[:]
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return model  # a branch may use any name
    short: dict[str, str] = {value.name: value.name for value in (*graph.input, *graph.output)}
    stored: dict[bytes, str] = {}
    kept = []
    for constant in graph.initializer:
        name, constant.name = constant.name, ""
        content = constant.SerializeToString(deterministic=True)
        if content not in stored:
            stored[content] = constant.name = f"c{len(stored)}"
            kept.append(constant)
        short[name] = stored[content]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name:
                    names[place] = short.setdefault(name, f"t{len(short)}")
    return model
