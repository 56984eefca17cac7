"""DenseNet for small images (Huang et al. 2017, arXiv 1608.06993), without bottlenecks or compression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.models.initialise import he_initialise


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution whose channels join the input's: (N, C, H, W) → (N, C + growth, H, W)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Join new channels to the input's."""
        return torch.cat((x, self.conv(self.relu(self.bn(x)))), 1)


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.AvgPool2d(2),
    )


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions between them, a global average and a linear classifier.

    (N, in_channels, H, W) → (N, num_classes) logits, for H, W ≥ 4 (32×32 in the paper). `layers` counts one block's
    convolutions, `growth` the channels that each adds; the stem has 2·growth channels, the depth is 3·layers + 4.
    """

    def __init__(self, layers: int, growth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        first, second, third = (growth * (2 + layers * blocks) for blocks in (1, 2, 3))  # widths after each block
        self.stem = nn.Conv2d(in_channels, 2 * growth, 3, padding=1, bias=False)
        self.block1 = _block(2 * growth, layers, growth)
        self.transition1 = _transition(first)
        self.block2 = _block(first, layers, growth)
        self.transition2 = _transition(second)
        self.block3 = _block(second, layers, growth)
        self.bn = nn.BatchNorm2d(third)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(third, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.transition1(self.block1(self.stem(x)))
        x = self.transition2(self.block2(x))
        x = self.relu(self.bn(self.block3(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))  # (N, C, H, W) → (N, C) → (N, num_classes)
        return logits


def _block(in_channels: int, layers: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(in_channels + growth * index, growth) for index in range(layers)))


def densenet40(num_classes: int = 10, in_channels: int = 3) -> DenseNet:
    """DenseNet-40 with growth 12: 1.06 M parameters (1.04 M without BatchNorm's), 283 M MACs at 32×32.

    The network that HRank and later papers prune (github.com/lmbxmu/HRank, arXiv 2002.10179). Its stem has 24 channels,
    that of the DenseNet paper 16.
    """
    return DenseNet(12, 12, num_classes, in_channels)
