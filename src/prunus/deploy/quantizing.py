"""A network as an ONNX file with 8-bit integers, in memory: what it holds, what runs it, and what can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunus.deploy.capturing import Captured, capture
from prunus.deploy.comparing import Samples
from prunus.deploy.file_info import FileInfo
from prunus.deploy.formats import find_format, onnx, onnx_int8
from prunus.deploy.int8_scheme import Int8Scheme, read_scheme
from prunus.deploy.int8_simulation import Int8Simulation
from prunus.deploy.runner import Runner
from prunus.errors import ModelError


@dataclass(frozen=True)
class Quantized:
    """An ONNX file with 8-bit integers that is not on the disk yet.

    Attributes:
        content: the bytes of the file.
        scheme: which tensors have 8 bits, and what they stand for.
        captured: the network's graph.
        program: torch's ONNX program of it.
    """

    content: bytes
    scheme: Int8Scheme
    captured: Captured
    program: Any

    def open(self, threads: int = 1) -> Runner:
        """Open it in ONNX Runtime."""
        return onnx.open_bytes(self.content, Path("model.int8.onnx"), threads)

    def simulation(self, network: nn.Module) -> Int8Simulation:
        """Make of the network that was quantised, or of a copy of it, one that can be trained as the file computes.

        Raises:
            ModelError: its code fixes the batch to one image.
        """
        if not self.captured.any_batch:
            raise ModelError(
                "the network's code fixes the number of images that it takes at once, so that torch.export captures it "
                "for one, and it cannot be trained with 8-bit integers simulated: type --int8-epochs 0 for none of that"
            )
        return Int8Simulation(network, self.program, self.captured, self.scheme)


def quantize(
    model: nn.Module, info: FileInfo, calibration: Samples, grids: Mapping[str, tuple[float, int]] | None = None
) -> Quantized:
    """Quantise a network after its training, statically, as `prunus export --to onnx --int8` does.

    Args:
        model: with one input and one output; it is left as it is.
        info: its description; what only the file knows is filled in.
        calibration: images like those that it will see, whose activations decide what the integers stand for.
        grids: scale and zero point of activations that are known already, as `Int8Simulation.grids` has them.

    Raises:
        ConfigError: what writes ONNX is not installed.
        ModelError: torch cannot write the network as ONNX, or ONNX Runtime cannot quantise it.
    """
    find_format("onnx")
    captured = capture(model, info.input_shape)
    program = onnx.exported_program(captured)
    quantized = onnx_int8.quantized(program, captured, calibration, grids)
    scheme = read_scheme(quantized)
    described = info.model_copy(update={"format": "onnx", "precision": "int8", "batchnorm_folded": True})
    return Quantized(onnx_int8.encode(program, quantized, captured, described), scheme, captured, program)
