"""GoogLeNet with BatchNorm for small images (Szegedy et al. 2014, arXiv 1409.4842)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.models.initialise import he_initialise
from prunus.models.layers import conv_bn


class Inception(nn.Module):
    """Four branches side by side: 1×1; 1×1 then 3×3; 1×1 then two 3×3 in place of a 5×5; pooling then 1×1.

    (N, C_in, H, W) → (N, width1 + width3 + width5 + width_pool, H, W). `reduce3` and `reduce5` are the widths of the
    1×1 convolutions before the larger ones.
    """

    def __init__(
        self, in_channels: int, width1: int, reduce3: int, width3: int, reduce5: int, width5: int, width_pool: int
    ) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(*conv_bn(in_channels, width1, 1, bias=True))
        self.branch3 = nn.Sequential(
            *conv_bn(in_channels, reduce3, 1, bias=True),
            *conv_bn(reduce3, width3, 3, bias=True),
        )
        self.branch5 = nn.Sequential(
            *conv_bn(in_channels, reduce5, 1, bias=True),
            *conv_bn(reduce5, width5, 3, bias=True),
            *conv_bn(width5, width5, 3, bias=True),
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            *conv_bn(in_channels, width_pool, 1, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches along the channels."""
        return torch.cat((self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)), 1)


class GoogLeNet(nn.Module):
    """A stem, nine inception modules in three stages, a global average and a linear classifier.

    (N, in_channels, H, W) → (N, num_classes) logits, for any H, W ≥ 1 (32×32 in the sources).
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, 192, 3, bias=True))
        self.stage3 = nn.Sequential(
            Inception(192, 64, 96, 128, 16, 32, 32),
            Inception(256, 128, 128, 192, 32, 96, 64),
        )
        self.pool3 = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage4 = nn.Sequential(
            Inception(480, 192, 96, 208, 16, 48, 64),
            Inception(512, 160, 112, 224, 24, 64, 64),
            Inception(512, 128, 128, 256, 24, 64, 64),
            Inception(512, 112, 144, 288, 32, 64, 64),
            Inception(528, 256, 160, 320, 32, 128, 128),
        )
        self.pool4 = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage5 = nn.Sequential(
            Inception(832, 256, 160, 320, 32, 128, 128),
            Inception(832, 384, 192, 384, 48, 128, 128),
        )
        self.fc = nn.Linear(1024, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.pool3(self.stage3(self.stem(x)))
        x = self.stage5(self.pool4(self.stage4(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))  # (N, C, H, W) → (N, C) → (N, num_classes)
        return logits


def googlenet(num_classes: int = 10, in_channels: int = 3) -> GoogLeNet:
    """GoogLeNet with BatchNorm: 6.17 M parameters (6.15 M without BatchNorm's), 1.52 G MACs at 32×32.

    The network of github.com/kuangliu/pytorch-cifar that HRank and later papers prune (arXiv 2002.10179).
    """
    return GoogLeNet(num_classes, in_channels)
