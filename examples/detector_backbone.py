"""A detector: digits are found in larger pictures, then half of the MACs go, the two halves of C2f blocks included.

python examples/detector_backbone.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus

SIDE = 24  # pixels of a picture; a digit of 8 lies somewhere in it, in one of 3 × 3 cells
NOTHING = 10


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Make a convolution with its norm and activation."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.SiLU())


class C2f(nn.Module):
    """A block that cuts its channels in two, works on the second half, and joins all it has seen."""

    def __init__(self, c_in: int, c_out: int, repeats: int = 1) -> None:
        super().__init__()
        half = c_out // 2
        self.first, self.last = conv(c_in, 2 * half, 1), conv((2 + repeats) * half, c_out, 1)
        self.inner = nn.ModuleList(nn.Sequential(conv(half, half), conv(half, half)) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, c_out, H, W)."""
        parts = list(self.first(x).chunk(2, 1))
        for layers in self.inner:
            parts.append(parts[-1] + layers(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """Says of every cell of 8 × 8 pixels which digit is in it, or none: (N, 11, H/8, W/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv(1, 16, stride=2), C2f(16, 32), conv(32, 48, stride=2), C2f(48, 48), conv(48, 64, stride=2)
        )
        self.head = nn.Conv2d(64, NOTHING + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of every cell."""
        return self.head(self.backbone(x))


def pictures(digits: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Put each digit into one cell of an empty picture: images (N, 1, 24, 24), and what is in each cell (N, 3, 3)."""
    cells = torch.randint(0, 9, (len(digits),), generator=torch.Generator().manual_seed(seed))
    images = torch.zeros(len(digits), 1, SIDE, SIDE)
    found = torch.full((len(digits), 3, 3), NOTHING)
    for number, (row, column) in enumerate(zip((cells // 3).tolist(), (cells % 3).tolist(), strict=True)):
        images[number, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = digits[number] / 255
        found[number, row, column] = labels[number]
    return images, found


def train(model: nn.Module, images: Tensor, found: Tensor, epochs: int, peak: float) -> None:
    """Train by AdamW, from a peak learning rate down to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), found[batch]).backward()
            optimizer.step()
        schedule.step()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, found: Tensor) -> float:
    """Return the share of pictures in which every cell is told right."""
    return (model.eval()(images).argmax(1) == found).flatten(1).all(1).float().mean().item()


def main() -> None:
    """Do it, and print what came of it."""
    torch.manual_seed(0)
    digits = prunus.load_data("digits")
    images, found = pictures(digits.train_images, digits.train_labels, seed=0)
    test_images, test_found = pictures(digits.test_images, digits.test_labels, seed=1)
    detector = Detector()
    train(detector, images, found, epochs=5, peak=5e-3)
    before = accuracy(detector, test_images, test_found)

    # The whole detector. prunus.prune(detector.backbone, ...) would keep what the head reads.
    result = prunus.prune(detector, images[:2], budget=prunus.Budget(macs=0.5))
    train(result.model, images, found, epochs=4, peak=2e-3)
    print(result.plan.summary())
    print(f"accuracy: dense {before:.3f}, pruned and trained on {accuracy(result.model, test_images, test_found):.3f}")


if __name__ == "__main__":
    main()
