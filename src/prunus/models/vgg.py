"""VGG with BatchNorm for small images (Simonyan and Zisserman 2014, arXiv 1409.1556), with small classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from prunus.models.initialise import he_initialise
from prunus.models.layers import conv_bn

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG19_STAGES = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))


class VGG(nn.Module):
    """Stages of 3×3 convolutions with max pooling between them, a global average, and a classifier.

    (N, in_channels, H, W) → (N, num_classes) logits, for H, W ≥ 16 (32×32 in the sources). `stages` holds the widths of
    each stage's convolutions; `hidden` the widths of fully connected layers with BatchNorm before the last one.
    """

    def __init__(
        self, stages: Sequence[Sequence[int]], hidden: Sequence[int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.features = _features(stages, in_channels)
        self.classifier = _classifier((stages[-1][-1], *hidden), num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.features(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))  # (N, C, H, W) → (N, C) → (N, num_classes)
        return logits


def _features(stages: Sequence[Sequence[int]], in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, widths in enumerate(stages):
        if index > 0:
            layers.append(nn.MaxPool2d(2))
        for width in widths:
            layers += conv_bn(in_channels, width, 3, bias=True)
            in_channels = width
    return nn.Sequential(*layers)


def _classifier(widths: Sequence[int], num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for in_features, out_features in pairwise(widths):
        layers += [nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def vgg16_bn(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16 with BatchNorm and one hidden layer of 512: 14.99 M parameters, 313.5 M MACs at 32×32.

    The network that HRank and most later papers prune (github.com/lmbxmu/HRank, arXiv 2002.10179).
    """
    return VGG(VGG16_STAGES, (512,), num_classes, in_channels)


def vgg19_bn(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-19 with BatchNorm and no hidden layer: 20.04 M parameters, 398.1 M MACs at 32×32.

    The network that Network Slimming prunes (github.com/Eric-mingjie/network-slimming, arXiv 1708.06519).
    """
    return VGG(VGG19_STAGES, (), num_classes, in_channels)
