"""A network of timm, by its name: half of its MACs, widths in multiples of 8.

The smallest ResNet of timm, so that it takes seconds; put any other name in its place.

pip install '.[timm]' && python examples/timm_model.py
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus


def build() -> nn.Module:
    """Make the network as it is before pruning; `pretrained=True` would download trained weights."""
    model: nn.Module = timm.create_model("test_resnet", pretrained=False, num_classes=10, in_chans=1)
    return model


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, peak: float) -> None:
    """Train by AdamW, from a peak learning rate down to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak)
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
    images, test_images = (F.interpolate(split / 255, size=32) for split in (digits.train_images, digits.test_images))
    model = build()
    train(model, images, digits.train_labels, epochs=4, peak=4e-3)

    result = prunus.prune(model, images[:2], budget=prunus.Budget(macs=0.5), round_to=8)
    for kept in result.graph.frozen:
        print(f"kept whole: {kept.tensor}, since {kept.reason}")
    train(result.model, images, digits.train_labels, epochs=2, peak=2e-3)

    prunus.save(result.model, "timm_model.safetensors", plan=result.plan, input_shape=(1, 32, 32))
    loaded = prunus.load("timm_model.safetensors", factory=build)
    print(f"MACs: {result.plan.before.macs:,} → {result.plan.after.macs:,}")
    dense, pruned = (accuracy(each, test_images, digits.test_labels) for each in (model, loaded))
    print(f"accuracy: dense {dense:.3f}, pruned and trained on {pruned:.3f}")


if __name__ == "__main__":
    main()
