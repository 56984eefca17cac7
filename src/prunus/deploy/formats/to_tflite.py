"""Convert a .pt2 file to .tflite: run as a script, by a Python that has litert-torch and need not have Prunus."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any


def main(graph: str, shape: str, target: str, calibration: str | None = None) -> None:
    """Convert, with 8-bit integers where there are images to calibrate on, and print the versions of what did it."""
    import litert_torch
    import torch

    loaded = torch.export.load(graph).module(check_guards=False)

    class Network(torch.nn.Module):
        """A module with the modes that the converter asks for, which a loaded graph does not have."""

        def __init__(self) -> None:
            super().__init__()
            self.graph = [loaded]
            for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
                self.register_buffer(name.replace(".", "_"), tensor.detach())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.graph[0](images)
            return result

    example = torch.zeros(*(int(size) for size in shape.split(",")))
    litert_torch.convert(Network().eval(), (example,)).export(target)
    packages = ["litert-torch"]
    if calibration is not None:
        packages.append("ai-edge-quantizer")
        quantize(target, calibration)
    print(*(f"{package}={version(package)}" for package in packages))


def quantize(target: str, calibration: str) -> None:
    """Turn a .tflite file into one with 8-bit integers, in place; `calibration` is a .npy file (N, C, H, W)."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    images = np.load(calibration)
    ((signature, sides),) = Interpreter(model_path=target).get_signature_list().items()
    (name,) = sides["inputs"]
    work = quantizer.Quantizer(target, recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):  # these stay float32
        work.update_quantization_recipe(".*", end, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    # One by one: of several images the quantiser averages the smallest and largest values, and cuts off what is beyond.
    whole: dict[str, dict[str, Any]] = {}
    for image in images:
        for tensor, seen in work.calibrate({signature: [{name: image[None]}]}, num_threads=1).items():
            known = whole.setdefault(tensor, dict(seen))
            for end, wider in (("min", np.minimum), ("max", np.maximum)):
                if end in seen:
                    known[end] = wider(known[end], seen[end])
    work.quantize(whole).export_model(target, overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
