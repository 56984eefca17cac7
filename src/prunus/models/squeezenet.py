"""SqueezeNet for small images (Iandola et al. 2016, arXiv 1602.07360), with simple bypass and BatchNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.models.initialise import he_initialise
from prunus.models.layers import conv_bn


class Fire(nn.Module):
    """Squeeze by a 1×1, then expand by a 1×1 and a 3×3 side by side: (N, C_in, H, W) → (N, C_out, H, W), C_out even.

    With `bypass` the input, of C_out channels too, is added to the output.
    """

    def __init__(self, in_channels: int, out_channels: int, squeezed: int, *, bypass: bool = False) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(*conv_bn(in_channels, squeezed, 1, bias=True))
        self.expand1 = nn.Sequential(*conv_bn(squeezed, out_channels // 2, 1, bias=True))
        self.expand3 = nn.Sequential(*conv_bn(squeezed, out_channels // 2, 3, bias=True))
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        """Squeeze and expand."""
        squeezed = self.squeeze(x)
        out = torch.cat((self.expand1(squeezed), self.expand3(squeezed)), 1)
        return out + x if self.bypass else out


class SqueezeNet(nn.Module):
    """A stem, eight fire modules with max pooling between them, and a 1×1 convolution whose averages are the logits.

    (N, in_channels, H, W) → (N, num_classes) logits, for H, W ≥ 8 (32×32 in the source).
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, 96, 3, bias=True))
        self.pool1 = nn.MaxPool2d(2)
        self.fire2 = Fire(96, 128, 16)
        self.fire3 = Fire(128, 128, 16, bypass=True)
        self.fire4 = Fire(128, 256, 32)
        self.pool4 = nn.MaxPool2d(2)
        self.fire5 = Fire(256, 256, 32, bypass=True)
        self.fire6 = Fire(256, 384, 48)
        self.fire7 = Fire(384, 384, 48, bypass=True)
        self.fire8 = Fire(384, 512, 64)
        self.pool8 = nn.MaxPool2d(2)
        self.fire9 = Fire(512, 512, 64)
        self.classifier = nn.Conv2d(512, num_classes, 1)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.fire2(self.pool1(self.stem(x)))
        x = self.fire4(self.fire3(x))
        x = self.fire5(self.pool4(x))
        x = self.fire8(self.fire7(self.fire6(x)))
        x = self.fire9(self.pool8(x))
        logits: Tensor = self.classifier(x).mean((2, 3))  # (N, num_classes, H, W) → (N, num_classes)
        return logits


def squeezenet(num_classes: int = 10, in_channels: int = 3) -> SqueezeNet:
    """SqueezeNet with simple bypass: 0.73 M parameters (0.78 M for 100 classes), 52.5 M MACs at 32×32.

    The layout of github.com/weiaicunzai/pytorch-cifar100.
    """
    return SqueezeNet(num_classes, in_channels)
