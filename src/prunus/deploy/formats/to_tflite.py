"""Convert a .pt2 file to .tflite: run as a script, by a Python that has litert-torch and need not have Prunus."""

from __future__ import annotations

import sys
from importlib.metadata import version


def main(graph: str, shape: str, target: str) -> None:
    """Convert, and print the converter's version."""
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
    print(version("litert-torch"))


if __name__ == "__main__":
    main(*sys.argv[1:])
