"""Is the file the network? Its own runtime and PyTorch on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus.deploy.runner import Array

_BATCH = 256  # images at a time


@dataclass(frozen=True)
class Samples:
    """Images to compare on, (N, C, H, W), what makes the network's input of some of them, and labels if known, (N,)."""

    images: Tensor
    labels: Tensor | None = None
    normalize: Callable[[Tensor], Tensor] = Tensor.float

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[Tensor]:
        """Give the network's inputs, float32, some at a time."""
        for part in self.images.split(_BATCH):
            yield self.normalize(part)


@dataclass(frozen=True)
class Comparison:
    """How a file's outputs differ from PyTorch's.

    `max_error` is the largest difference of an output and `max_relative_error` the same in parts of the largest output
    of PyTorch; `agreement` is the fraction of images with the same class. Accuracies are None without labels.
    """

    images: int
    max_error: float
    max_relative_error: float
    agreement: float
    accuracy: float | None
    torch_accuracy: float | None


def inputs(samples: Samples, size: int | None = None) -> Iterator[Array]:
    """Give the network's inputs in batches, or where `size` is given so many at a time."""
    for batch in samples.batches():
        for part in batch.split(size or len(batch)):
            yield part.numpy()


def random_samples(input_shape: tuple[int, ...], count: int = 64) -> Samples:
    """Make images of Gaussian noise, always the same."""
    return Samples(torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(0)))


def outputs_of(model: nn.Module, samples: Samples) -> Array:
    """Return what a network gives for all samples, in eval mode; modes are put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            return np.concatenate([model(batch).float().numpy() for batch in samples.batches()])
    finally:
        for module, training in modes.items():
            module.training = training


def compare(run: Callable[[Array], Array], expected: Array, samples: Samples) -> Comparison:
    """Run a file on all samples and compare with `expected`, the outputs of PyTorch."""
    found = np.concatenate([run(batch.numpy()) for batch in samples.batches()])
    if found.shape != expected.shape or not np.isfinite(found).all():
        return Comparison(len(samples), float("inf"), float("inf"), 0.0, None, None)
    worst = float(np.abs(found - expected).max())
    largest = float(np.abs(expected).max())
    ours, theirs = found.argmax(1), expected.argmax(1)
    return Comparison(
        images=len(samples),
        max_error=worst,
        max_relative_error=worst / largest if largest else worst,
        agreement=float((ours == theirs).mean()),
        accuracy=_accuracy(ours, samples),
        torch_accuracy=_accuracy(theirs, samples),
    )


def _accuracy(classes: NDArray[np.int64], samples: Samples) -> float | None:
    if samples.labels is None or classes.ndim != 1:
        return None
    return float((classes == samples.labels.numpy()).mean())
