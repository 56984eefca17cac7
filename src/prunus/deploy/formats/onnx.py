"""ONNX, written by torch's exporter on torch.export, run by ONNX Runtime: one file with the weights inside."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.deploy.capturing import Captured, quietly
from prunus.deploy.file_info import INFO_KEY, FileInfo, installed_versions, parse_info
from prunus.deploy.runner import Array, Runner
from prunus.errors import FileFormatError, ModelError
from prunus.files import atomic_write_bytes, read_bytes

OPSET = 18
INPUT, OUTPUT = "images", "logits"


def write(captured: Captured, path: Path, info: FileInfo) -> tuple[Path, ...]:
    """Write one .onnx file; the description is in its metadata, under the key "prunus".

    Raises:
        ModelError: the network has an operation that torch cannot write as ONNX.
    """
    program = exported_program(captured)
    info = described(program, captured, info, "torch", "onnx", "onnxscript")
    program.model.metadata_props[INFO_KEY] = info.encode()
    atomic_write_bytes(path, program.model_proto.SerializeToString())
    return (path,)


def exported_program(captured: Captured) -> Any:
    """Turn a captured network into torch's ONNX program, one that says nothing of the code that it came from.

    Raises:
        ModelError: the network has an operation that torch cannot write as ONNX.
    """
    with _silent():
        try:
            program: Any = torch.onnx.export(
                captured.program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},) if captured.any_batch else None,
                external_data=False,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ModelError(f"torch cannot write the network as ONNX: {reason}") from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of code that an operation came from
    return program


def described(program: Any, captured: Captured, info: FileInfo, *packages: str) -> FileInfo:
    """Add to a description what is known once the network is ONNX, and the versions of what wrote it."""
    return info.model_copy(
        update={
            "opset": program.model.opset_imports[""],
            "versions": installed_versions(*packages),
            "batch": None if captured.any_batch else 1,
        }
    )


def open_file(path: Path, threads: int) -> Runner:
    """Open a .onnx file that `write` wrote."""
    return open_bytes(read_bytes(path, "ONNX file"), path, threads)


def open_bytes(data: bytes, path: Path, threads: int) -> Runner:
    """Open what a .onnx file holds; `path` is for messages."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # what waits must not slow down others
    options.log_severity_level = 4
    try:
        # From memory, so that the file cannot name another one for its weights.
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no base
        reason = str(error).strip().splitlines()[0]
        raise FileFormatError(f"the ONNX file {path} is cut short, damaged or not ONNX: {reason}") from error
    text = session.get_modelmeta().custom_metadata_map.get(INFO_KEY)
    if text is None:
        raise FileFormatError(f"the ONNX file {path} has no description by Prunus: it was written by something else")
    (name,) = (found.name for found in session.get_inputs()[:1])

    def infer(images: Array) -> Array:
        return np.asarray(session.run(None, {name: images})[0], dtype=np.float32)

    return Runner(parse_info(text, path), f"ONNX Runtime {onnxruntime.__version__}", infer)


def encode_layer(layer: nn.Conv2d | nn.Linear, info: FileInfo) -> bytes:
    """Write one layer and a rectifier behind it, a hundred times quicker than torch's exporter does."""
    from onnx import TensorProto, helper, numpy_helper

    tensors = {"weight": layer.weight, "bias": layer.bias}
    initial = [numpy_helper.from_array(t.detach().numpy(), name) for name, t in tensors.items() if t is not None]
    names = [INPUT, *(tensor.name for tensor in initial)]
    if isinstance(layer, nn.Linear):
        node = helper.make_node("Gemm", names, ["found"], transB=1)
    else:
        pads = [*_numbers(layer.padding), *_numbers(layer.padding)]
        sizes: dict[str, Any] = {
            "strides": layer.stride,
            "dilations": layer.dilation,
            "kernel_shape": layer.kernel_size,
        }
        node = helper.make_node("Conv", names, ["found"], group=layer.groups, pads=pads, **sizes)
    nodes = [node, helper.make_node("Relu", ["found"], [OUTPUT])]
    images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *info.input_shape])
    result = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", [images], [result], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, {INFO_KEY: info.encode()})
    encoded: bytes = model.SerializeToString()
    return encoded


def _numbers(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    assert not isinstance(padding, str)
    return padding


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's progress, log and warnings from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with quietly(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
