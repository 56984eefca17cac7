from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from prunus.stopping import Stopped, Stopping
from prunus.training import Recipe, fit

Result = TypeVar("Result")


@dataclass(frozen=True)
class Images:
    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor


def make_images() -> Images:
    """Three classes of 6×6 images with two channels, bright in a third each, under noise."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(3, (110,), generator=generator)
    pixels = torch.randint(160, (110, 2, 6, 6), generator=generator)
    for rows in range(3):
        pixels[labels == rows, :, 2 * rows : 2 * rows + 2] += 90
    pixels = pixels.to(torch.uint8)
    return Images(pixels[:80], labels[:80], pixels[80:], labels[80:])


@pytest.fixture
def images() -> Images:
    """The images of `make_images`."""
    return make_images()


def normalize(batch: Tensor) -> Tensor:
    return batch.float() / 64 - 2


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    return normalize(batch) + 0.1 * torch.randn(batch.shape, generator=generator)


def make_model() -> nn.Module:
    """All that a training has to remember: BatchNorm statistics, an integer buffer, dropout, an unused parameter."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(72, 3),
    )
    model.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))
    return model


def step_by_step(call: Callable[[Stopping], Result]) -> tuple[int, Result]:
    """Call with no time at all, so that every call makes one step, until it comes through; say how often it stopped."""
    stops = 0
    while True:
        try:
            return stops, call(Stopping(max_minutes=1e-9))
        except Stopped:
            stops += 1
            assert stops < 100


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(4, batch_size=16, learning_rate=0.05, warmup_epochs=1, label_smoothing=0.1, precision="float32")


@pytest.fixture
def train(images: Images, recipe: Recipe, tmp_path: Path) -> Callable[..., tuple[nn.Module, list[dict[str, Any]]]]:
    """Train a new model, with what the test changes; returns the model and its history."""

    def run(model: nn.Module | None = None, **changes: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        model = model or make_model()
        settings: dict[str, Any] = {"augment": augment, "normalize": normalize, "stage": "dense", "progress": False}
        settings |= {"checkpoint_dir": tmp_path / "checkpoints"} | changes
        data, how = settings.pop("data", images), settings.pop("recipe", recipe)
        return model, fit(model, data, how, **settings)

    return run
