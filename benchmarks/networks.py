"""The networks that the benchmark prunes, by name, with random weights and inputs of their usual size."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from prunus.models.sources import find_network

Inputs = tuple[Tensor, ...]


class ResidualBlock(nn.Module):
    """Two convolutions and a sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()  # type: ignore[no-any-return]


class ResidualNetwork(nn.Module):
    """A stem and any number of blocks of one width: 2 · blocks + 1 convolutions."""

    def __init__(self, blocks: int, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def build(spec: str) -> tuple[nn.Module, Inputs]:
    """Build a network by its name ("resnet8", "timm:resnet50", "residual:150") and inputs of its usual size."""
    torch.manual_seed(0)
    library, _, name = spec.rpartition(":")
    if library == "residual":
        return ResidualNetwork(int(name)).eval(), (torch.rand(1, 3, 8, 8),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = find_network(spec).build()
    if "inception_v3" in name:  # trains on no fewer: its auxiliary head normalises maps of one position
        return model.eval(), (torch.rand(2, 3, 299, 299),)
    side = 224 if library else 32
    return model.eval(), (torch.rand(1, 3, side, side),)
