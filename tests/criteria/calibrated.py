"""Images with labels, networks in float64, and what is measured of their layers: for the tests beside this file."""

from __future__ import annotations

import torch
from tests.handmade import SIDE
from tests.silenced import randomise
from torch import Tensor, nn

from prunus.criteria import LayerValues, read_layers
from prunus.graph.trace import trace

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(7, 3, SIDE, SIDE, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0])
BATCHES = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]


def layers_of(model: nn.Module, *needs: str, calibration: object = BATCHES) -> dict[str, LayerValues]:
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    return {layer.name: values for layer, values in read_layers(model, graph, calibration, needs)}


def double(model: nn.Module) -> nn.Module:
    return randomise(model).double().eval()


class Twice(nn.Module):
    """A module that runs twice, a layer whose gradient is not asked for, and one that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.idle = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)
        self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(torch.relu(self.shared(torch.relu(self.stem(x)))))
        return self.fc((x + self.idle(x).detach()).mean((2, 3)))
