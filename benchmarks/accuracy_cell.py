"""What benchmarks/accuracy.py measures: a cell of its tables, and what all cells share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.data import ImageData, Split, normalize

_CRITERION_IMAGES = 512  # as `prunus compress` measures on


@dataclass(frozen=True)
class Cell:
    """What is measured: a network, the share of its MACs that stay (None: all), a method, a seed, and how trained."""

    network: str
    macs: float | None
    method: str
    seed: int = 0
    distilled: bool = False

    @property
    def name(self) -> str:
        """The cell's file, without its ending."""
        parts = [self.network, *([] if self.macs is None else [f"macs-{self.macs:g}"]), self.method]
        return "_".join([*parts, f"seed-{self.seed}", *(["distilled"] if self.distilled else [])])


@dataclass(frozen=True)
class Settings:
    """What all cells share: the images, the epochs, where to compute, and where to keep what is not finished."""

    data: ImageData
    split: Split
    checkpoints: dict[str, Path]
    work: Path
    finetune_epochs: int
    dense_epochs: int
    calibration: int
    device: torch.device
    on_epoch: Callable[[Cell, dict[str, Any]], None]
    flip: bool = True
    validation: float = 0.1
    split_seed: int = 0

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """Turn uint8 images into what the networks take."""
        return functools.partial(normalize, mean=self.data.mean, std=self.data.std)

    @functools.cached_property
    def images(self) -> Tensor:
        """Training images, spread evenly and without augmentation, that recovery and criteria may look at."""
        return self.normalize(self._spread(self.calibration))

    @functools.cached_property
    def criterion_images(self) -> Tensor:
        """The fewer that criteria look at."""
        return self.normalize(self._spread(_CRITERION_IMAGES))

    def _spread(self, count: int) -> Tensor:
        total = len(self.split.train_images)
        return self.split.train_images[torch.linspace(0, total - 1, min(count, total)).long()]
