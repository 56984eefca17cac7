"""LiteRT (once TensorFlow Lite): a .tflite file by litert-torch, with a description beside it.

The converter wants other versions of its dependencies than Prunus does. It may live in an environment of its own, whose
Python the variable PRUNUS_LITERT_PYTHON names; Prunus hands it a .pt2 file. The runtime is small and fits beside torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from prunus.deploy.capturing import Captured, quietly
from prunus.deploy.comparing import Samples, inputs
from prunus.deploy.file_info import FileInfo, installed_versions, read_side_file, write_side_file
from prunus.deploy.formats.silence import silent
from prunus.deploy.runner import Array, Runner
from prunus.errors import ConfigError, FileFormatError, ModelError
from prunus.files import atomic_write_bytes

PYTHON = "PRUNUS_LITERT_PYTHON"
_CONVERTER = Path(__file__).with_name("to_tflite.py")
_LONGEST_S = 1800


def write(captured: Captured, path: Path, info: FileInfo) -> tuple[Path, ...]:
    """Write the .tflite file, for one image, and its description.

    Raises:
        ConfigError: there is no converter.
        ModelError: it cannot convert the network.
    """
    return _convert(captured, path, info)


def write_int8(captured: Captured, path: Path, info: FileInfo, calibration: Samples) -> tuple[Path, ...]:
    """Write the .tflite file with 8-bit integers, by ai-edge-quantizer, which comes with the converter.

    Weights are int8, symmetric, with a scale for every output channel; activations int8 with one scale a tensor, from
    the smallest to the largest value met on `calibration`. Images and logits stay float32.

    Raises:
        ConfigError: there is no converter.
        ModelError: it cannot convert or quantise the network.
    """
    return _convert(captured, path, info, calibration)


def _convert(captured: Captured, path: Path, info: FileInfo, calibration: Samples | None = None) -> tuple[Path, ...]:
    python = converter()
    with tempfile.TemporaryDirectory() as folder:
        graph, converted = Path(folder) / "graph.pt2", Path(folder) / "model.tflite"
        with quietly():
            torch.export.save(captured.single, graph)
        shape = ",".join(map(str, captured.example[:1].shape))
        # -I: the modules beside the script have the names of the libraries that they use.
        command = [python, "-I", str(_CONVERTER), str(graph), shape, str(converted)]
        if calibration is not None:
            images = Path(folder) / "images.npy"
            np.save(images, np.concatenate(list(inputs(calibration))))
            command.append(str(images))
        done = subprocess.run(command, capture_output=True, timeout=_LONGEST_S, check=False)
        if done.returncode or not converted.is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {done.returncode}"
            raise ModelError(f"litert-torch ({python}) cannot convert the network: {reason}")
        atomic_write_bytes(path, converted.read_bytes())
    side = _beside(path)
    by = dict(word.split("=") for word in done.stdout.decode().splitlines()[-1].split())
    versions = by | installed_versions("torch", "ai-edge-litert")
    write_side_file(info.model_copy(update={"versions": versions, "batch": 1}), side, (path,))
    return path, side


def open_file(path: Path, threads: int) -> Runner:
    """Open a .tflite file that `write` wrote."""
    info = read_side_file(_beside(path), (path,))
    with quietly(), silent():
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FileFormatError(f"the file {path} does not fit this LiteRT: {reason}; export it again") from error
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()

    def infer(images: Array) -> Array:
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(wanted["index"]), dtype=np.float32)

    version = installed_versions("ai-edge-litert").get("ai-edge-litert", "")
    return Runner(info, f"LiteRT {version}", infer)


def converter() -> str:
    """Return the Python that has the converter: the one that the user names, or this one.

    Raises:
        ConfigError: there is none.
    """
    named = os.environ.get(PYTHON)
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"{PYTHON} is {named}, and there is no such file: name the Python that has litert-torch")
        return named
    if find_spec("litert_torch") is not None:
        return sys.executable
    raise ConfigError(
        "--to litert needs litert-torch, in an environment of its own: python3 -m venv litert && "
        f"litert/bin/pip install litert-torch && export {PYTHON}=$PWD/litert/bin/python"
    )


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
