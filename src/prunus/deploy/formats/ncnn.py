"""ncnn, for phones and boards: .ncnn.param and .ncnn.bin by pnnx, a description beside them, one image at a time."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from prunus.deploy.capturing import Captured, quietly
from prunus.deploy.file_info import FileInfo, installed_versions, read_side_file, write_side_file
from prunus.deploy.runner import Array, Runner
from prunus.errors import FileFormatError, ModelError
from prunus.files import atomic_write_bytes

_SUFFIX = ".param"
_INPUT, _OUTPUT = "in0", "out0"  # what pnnx calls them
_PNNX_FILES = ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnparam", "ncnnbin", "ncnnpy")
_LONGEST_S = 600


def write(captured: Captured, path: Path, info: FileInfo) -> tuple[Path, ...]:
    """Write the three files; weights are float16 where the description says so.

    Raises:
        ModelError: pnnx cannot convert the network, or ncnn has no layer for one of its operations.
    """
    import pnnx

    weights, side = _beside(path)
    half = info.precision == "float16 weights"
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "traced.pt"
        example = captured.example[:1]
        with quietly(), torch.no_grad():
            module = captured.single.module(check_guards=False)
            torch.jit.trace(module, (example,), check_trace=False).save(str(traced))
        shape = ",".join(map(str, example.shape))
        options = [f"inputshape=[{shape}]f32", f"fp16={int(half)}"]
        outputs = [f"{kind}={traced.with_suffix('.' + kind)}" for kind in _PNNX_FILES]
        # Its Python function would import the code that it writes.
        done = subprocess.run(
            [pnnx.EXEC_PATH, str(traced), *options, *outputs], capture_output=True, timeout=_LONGEST_S, check=False
        )
        parts = traced.with_suffix(".ncnnparam"), traced.with_suffix(".ncnnbin")
        if done.returncode or not all(part.is_file() for part in parts):
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"])[-1]
            raise ModelError(f"pnnx cannot convert the network to ncnn: {reason}")
        for target, part in zip((path, weights), parts, strict=True):
            atomic_write_bytes(target, part.read_bytes())
    unknown = _unknown_layers(path)
    if unknown:
        raise ModelError(f"ncnn has no layer for {', '.join(unknown)}, which the network uses")
    versions = installed_versions("torch", "pnnx", "ncnn")
    write_side_file(info.model_copy(update={"versions": versions, "batch": 1}), side, (path, weights))
    return path, weights, side


def open_file(path: Path, threads: int) -> Runner:
    """Open the files that `write` wrote, by the name of the first."""
    import ncnn

    weights, side = _beside(path)
    info = read_side_file(side, (path, weights))  # before ncnn reads what it does not check
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in (
        "use_vulkan_compute",
        "use_fp16_packed",
        "use_fp16_storage",
        "use_fp16_arithmetic",
        "use_bf16_storage",
    ):
        setattr(net.opt, name, False)  # numbers as PyTorch's; what ARM gains by float16 is the user's to turn on
    if net.load_param(str(path)) or net.load_model(str(weights)):
        raise FileFormatError(f"the ncnn file {path} does not fit this ncnn ({ncnn.__version__}); export it again")

    def infer(images: Array) -> Array:
        with net.create_extractor() as extractor:
            extractor.input(_INPUT, ncnn.Mat(images[0]))
            failed, output = extractor.extract(_OUTPUT)
            if failed:
                raise FileFormatError(f"ncnn cannot run {path}: code {failed}")
            return np.array(output, dtype=np.float32)[None]

    return Runner(info, f"ncnn {ncnn.__version__}", infer)


def _beside(path: Path) -> tuple[Path, Path]:
    stem = path.name.removesuffix(_SUFFIX)
    return path.with_name(f"{stem}.bin"), path.with_name(f"{stem}.json")


def _unknown_layers(path: Path) -> list[str]:
    """List the operations that pnnx left as they were: their names have a dot or a colon, ncnn's have not."""
    kinds = {line.split()[0] for line in path.read_text().splitlines()[2:] if line.strip()}
    return sorted(kind for kind in kinds if "." in kind or ":" in kind)
