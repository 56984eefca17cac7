"""ShuffleNetV2 for small images (Ma et al. 2018, arXiv 1807.11164)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.models.initialise import he_initialise
from prunus.models.layers import conv_bn


def shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels: (N, C, H, W) → (N, C, H, W), C even."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)  # (N, 2, C/2, H, W) → (N, C/2, 2, H, W)


def _filter(in_channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_bn(in_channels, width, 1),
        *conv_bn(width, width, 3, stride=stride, groups=width, activation=None),
        *conv_bn(width, width, 1),
    )


class Unit(nn.Module):
    """Filter one half of the channels, leave the other, and shuffle: (N, C, H, W) → (N, C, H, W), C even."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _filter(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Filter the second half."""
        same, filtered = x.chunk(2, dim=1)
        return shuffle(torch.cat((same, self.branch(filtered)), 1))


class DownsamplingUnit(nn.Module):
    """Filter all channels twice at half resolution, join and shuffle.

    (N, C_in, H, W) → (N, C_out, ⌈H/2⌉, ⌈W/2⌉), C_out even.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = out_channels // 2
        self.shortcut = nn.Sequential(
            *conv_bn(in_channels, in_channels, 3, stride=2, groups=in_channels, activation=None),
            *conv_bn(in_channels, width, 1),
        )
        self.branch = _filter(in_channels, width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Join both branches along the channels."""
        return shuffle(torch.cat((self.shortcut(x), self.branch(x)), 1))


def _stage(in_channels: int, out_channels: int, units: int) -> nn.Sequential:
    rest = (Unit(out_channels) for _ in range(units - 1))
    return nn.Sequential(DownsamplingUnit(in_channels, out_channels), *rest)


class ShuffleNetV2(nn.Module):
    """A stem, three stages of units, a 1×1 convolution, a global average and a linear classifier.

    (N, in_channels, H, W) → (N, num_classes) logits, for any H, W ≥ 1 (32×32 in the source).
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, 24, 3))
        self.stage2 = _stage(24, 116, 4)
        self.stage3 = _stage(116, 232, 8)
        self.stage4 = _stage(232, 464, 4)
        self.head = nn.Sequential(*conv_bn(464, 1024, 1))
        self.fc = nn.Linear(1024, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.stage4(self.stage3(self.stage2(self.stem(x))))
        x = self.head(x)
        logits: Tensor = self.fc(x.mean((2, 3)))  # (N, C, H, W) → (N, C) → (N, num_classes)
        return logits


def shufflenetv2(num_classes: int = 10, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 ×1.0 with a stem that keeps the resolution: 1.26 M parameters, 45.0 M MACs at 32×32.

    The stem is that of github.com/chenyaofo/pytorch-cifar-models, `shufflenetv2_x1_0`.
    """
    return ShuffleNetV2(num_classes, in_channels)
