"""A network of your own: train it on digits, prune it to 40 % of its MACs, train it on, save it, load it.

python examples/own_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus


class Net(nn.Module):
    """A small residual network for grey images."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, 1, H, W)."""
        x = self.stem(x)
        x = self.last(x + self.inner(x)).relu()
        return self.head(x.mean((2, 3)))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, peak: float) -> None:
    """Train by SGD, from a peak learning rate down to zero."""
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are told right."""
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Do it, and print what came of it."""
    torch.manual_seed(0)
    digits = prunus.load_data("digits")
    images, test_images = digits.train_images / 255, digits.test_images / 255
    model = Net()
    train(model, images, digits.train_labels, epochs=5, peak=0.1)

    result = prunus.prune(
        model, images[:2], budget=prunus.Budget(macs=0.4), calibration=images[:256], recover="reconstruct"
    )
    removed = accuracy(result.model, test_images, digits.test_labels)
    train(result.model, images, digits.train_labels, epochs=3, peak=0.02)

    prunus.save(result.model, "own_model.safetensors", plan=result.plan, input_shape=(1, 8, 8), classes=digits.classes)
    loaded = prunus.load("own_model.safetensors", factory=Net)
    print(result.plan.summary())
    dense, pruned = (accuracy(each, test_images, digits.test_labels) for each in (model, loaded))
    print(f"accuracy: dense {dense:.3f}, pruned {removed:.3f}, trained on {pruned:.3f}")


if __name__ == "__main__":
    main()
