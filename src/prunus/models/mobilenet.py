"""MobileNetV2 for small images (Sandler et al. 2018, arXiv 1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from prunus.models.initialise import he_initialise
from prunus.models.layers import conv_bn

# (expansion, channels out, blocks, stride of the first): the paper's table 2, whose second row has stride 2 at 224×224.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Widen by a 1×1, filter each channel by a depthwise 3×3, narrow by a linear 1×1; add the input where shapes agree.

    (N, C_in, H, W) → (N, C_out, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        widen = conv_bn(in_channels, width, 1, activation=nn.ReLU6) if expansion > 1 else []
        self.conv = nn.Sequential(
            *widen,
            *conv_bn(width, width, 3, stride=stride, groups=width, activation=nn.ReLU6),
            *conv_bn(width, out_channels, 1, activation=None),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Filter, and add the input where the block has a shortcut."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a 1×1 convolution, a global average and a linear classifier.

    (N, in_channels, H, W) → (N, num_classes) logits, for any H, W ≥ 1 (32×32 in the source). There is no dropout.
    """

    def __init__(self, num_classes: int, in_channels: int, narrower: int = 1) -> None:
        super().__init__()
        width, last = 32 // narrower, 1280 // narrower
        layers: list[nn.Module] = conv_bn(in_channels, width, 3, activation=nn.ReLU6)
        for expansion, channels, blocks, first_stride in STAGES:
            for index in range(blocks):
                out_channels = channels // narrower
                layers.append(InvertedResidual(width, out_channels, first_stride if index == 0 else 1, expansion))
                width = out_channels
        layers += conv_bn(width, last, 1, activation=nn.ReLU6)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.features(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))  # (N, C, H, W) → (N, C) → (N, num_classes)
        return logits


def mobilenetv2(num_classes: int = 10, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 ×1.0 with total stride 8: 2.24 M parameters, 88.0 M MACs at 32×32.

    The strides are those of github.com/chenyaofo/pytorch-cifar-models, `mobilenetv2_x1_0`.
    """
    return MobileNetV2(num_classes, in_channels)


def mobilenetv2_half(num_classes: int = 10, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 with half of every width, for training on a CPU: 0.59 M parameters, 23.7 M MACs at 32×32."""
    return MobileNetV2(num_classes, in_channels, narrower=2)
