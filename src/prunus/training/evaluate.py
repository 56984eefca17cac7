"""How good a network is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.training.feeding import Images


@dataclass(frozen=True)
class Predicted:
    """What a classifier says: `classes`, int64 (N,), and its `confidence`, float32 (N,), 0 to 1; on the CPU."""

    classes: Tensor
    confidence: Tensor


def predict_classes(
    model: nn.Module,
    images: Images,
    *,
    normalize: Callable[[Tensor], Tensor],
    batch_size: int = 500,
    device: torch.device | str = "cpu",
) -> Predicted:
    """Say what a classifier takes every image for, in float32 and eval mode; the mode is put back.

    Arguments are those of `evaluate`, and so are the batches: the share of right classes is its accuracy.
    """
    training = model.training
    model.eval()
    classes, confidence = [], []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = images[slice(start, min(start + batch_size, len(images)))].to(device)
                logits = model(normalize(batch)).float()
                classes.append(logits.argmax(1).cpu())
                confidence.append(logits.softmax(1).amax(1).cpu())
    finally:
        model.train(training)
    return Predicted(torch.cat(classes), torch.cat(confidence))


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    *,
    normalize: Callable[[Tensor], Tensor],
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    part: slice | None = None,
) -> dict[str, float]:
    """Measure accuracy, in [0, 1], and mean cross-entropy, in float32 and eval mode; the mode is put back.

    Args:
        model: a classifier on `device`: (N, C, H, W) → (N, classes).
        images: uint8 (N, C, H, W), on any device, N ≥ 1.
        labels: int64 (N,).
        normalize: turns uint8 images into what the network takes.
        batch_size: images a forward pass.
        device: where the network is.
        part: which of the images count, from start to stop; all of them without it.

    Returns:
        {"accuracy": …, "loss": …}
    """
    first, end = (part.start, part.stop) if part else (0, len(images))
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        with torch.inference_mode():
            for start in range(first, end, batch_size):
                chosen = slice(start, min(start + batch_size, end))
                batch = images[chosen].to(device)
                target = labels[chosen].to(device)
                logits = model(normalize(batch)).float()
                loss += F.cross_entropy(logits, target, reduction="sum")
                correct += (logits.argmax(1) == target).sum()
    finally:
        model.train(training)
    count = max(1, end - first)  # a process may have no part of a few images
    return {"accuracy": correct.item() / count, "loss": loss.item() / count}
