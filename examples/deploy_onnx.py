"""To another runtime: prune, write ONNX, and use the file with ONNX Runtime alone.

pip install '.[onnx]' && python examples/deploy_onnx.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, peak: float) -> nn.Module:
    """Train by SGD at one learning rate, and return the network."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=peak, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def write(folder: Path) -> Path:
    """Train a small network on digits, prune it, train it on, and write it as ONNX; return the file."""
    torch.manual_seed(0)
    digits = prunus.load_data("digits")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (digits.mean, digits.std))
    images = (digits.train_images / 255 - mean) / std
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    train(model, images, digits.train_labels, epochs=3, peak=0.05)
    result = prunus.prune(model, images[:2], budget=prunus.Budget(macs=0.5))
    small = train(result.model, images, digits.train_labels, epochs=2, peak=0.02)

    (exported,) = prunus.export(
        small,
        folder,
        ["onnx"],
        input_shape=(1, 8, 8),
        classes=digits.classes,
        mean=digits.mean,
        std=digits.std,
        plan=result.plan,
    )
    print(f"{exported.size_bytes:,} bytes, largest error {exported.comparison.max_relative_error:.1e}")
    return exported.files[0]


def use(path: Path, images: np.ndarray) -> list[str]:
    """Name what is on uint8 images (N, C, H, W): all that a program without PyTorch has to do."""
    session = onnxruntime.InferenceSession(path)
    info = json.loads(session.get_modelmeta().custom_metadata_map["prunus"])
    mean, std = (np.float32(info[name])[:, None, None] for name in ("mean", "std"))
    (logits,) = session.run(None, {"images": (images.astype(np.float32) / 255 - mean) / std})
    return [info["classes"][index] for index in logits.argmax(1)]


def main() -> None:
    """Do it, and print what came of it."""
    digits = prunus.load_data("digits")
    names = use(write(Path("exported")), digits.test_images.numpy())
    right = np.mean([name == digits.classes[label] for name, label in zip(names, digits.test_labels, strict=True)])
    print(f"accuracy: {right:.3f}")


if __name__ == "__main__":
    main()
