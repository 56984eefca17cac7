"""ResNets for small images (He et al. 2016, arXiv 1512.03385, section 4.2), with either way of widening a shortcut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.models.initialise import he_initialise

Shortcut = Callable[
    [int, int, int], nn.Module
]  # (channels in, channels out, stride) → the shortcut where the width changes


class ZeroPadShortcut(nn.Module):
    """Every stride-th pixel, widened with channels of zeros: a shortcut without parameters (option A of the paper).

    (N, C, H, W) → (N, padding[0] + C + padding[1], ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        self.stride = stride
        self.padding = (before, out_channels - in_channels - before)  # channels of zeros before and after x's own

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and widen."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build a 1×1 convolution with BatchNorm (option B of the paper)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: (N, C_in, H, W) → (N, C_out, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else shortcut(in_channels, out_channels, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the shortcut."""
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.relu2(out + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A stem, three stages of basic blocks at full, half and quarter resolution, and a linear classifier.

    (N, in_channels, H, W) → (N, num_classes) logits, for any H, W ≥ 1 (32×32 in the paper).
    """

    def __init__(
        self,
        blocks: int,
        shortcut: Shortcut,
        num_classes: int,
        in_channels: int,
        widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        stem, *_ = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(stem, widths[0], blocks, 1, shortcut)
        self.layer2 = _stage(widths[0], widths[1], blocks, 2, shortcut)
        self.layer3 = _stage(widths[1], widths[2], blocks, 2, shortcut)
        self.fc = nn.Linear(widths[2], num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))  # (N, C, H, W) → (N, C) → (N, num_classes)
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    rest = (BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def resnet8(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-8 with projection shortcuts, for 8×8 digits and for tests: one block a stage, 78,042 parameters."""
    return ResNet(1, projection_shortcut, num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 with projection shortcuts: 0.27 M parameters, 40.8 M MACs at 32×32."""
    return ResNet(3, projection_shortcut, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-32 with projection shortcuts: 0.47 M parameters, 69.1 M MACs at 32×32."""
    return ResNet(5, projection_shortcut, num_classes, in_channels)


def resnet44(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-44 with projection shortcuts: 0.66 M parameters, 97.4 M MACs at 32×32."""
    return ResNet(7, projection_shortcut, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-56 with projection shortcuts: 0.86 M parameters, 125.7 M MACs at 32×32."""
    return ResNet(9, projection_shortcut, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-110 with projection shortcuts: 1.73 M parameters, 253.2 M MACs at 32×32."""
    return ResNet(18, projection_shortcut, num_classes, in_channels)


def resnet8_pad(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-8 with zero-padding shortcuts, for 8×8 digits and for tests."""
    return ResNet(1, ZeroPadShortcut, num_classes, in_channels)


def resnet20_pad(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 with zero-padding shortcuts: 0.27 M parameters, 40.6 M MACs at 32×32."""
    return ResNet(3, ZeroPadShortcut, num_classes, in_channels)


def resnet32_pad(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-32 with zero-padding shortcuts: 0.46 M parameters, 68.9 M MACs at 32×32."""
    return ResNet(5, ZeroPadShortcut, num_classes, in_channels)


def resnet44_pad(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-44 with zero-padding shortcuts: 0.66 M parameters, 97.2 M MACs at 32×32."""
    return ResNet(7, ZeroPadShortcut, num_classes, in_channels)


def resnet56_pad(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-56 with zero-padding shortcuts: 0.85 M parameters, 125.5 M MACs at 32×32."""
    return ResNet(9, ZeroPadShortcut, num_classes, in_channels)


def resnet110_pad(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-110 with zero-padding shortcuts: 1.7 M parameters, 252.9 M MACs at 32×32."""
    return ResNet(18, ZeroPadShortcut, num_classes, in_channels)
