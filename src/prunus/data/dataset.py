"""A data set in memory: uint8 images, labels, class names, and the statistics that normalise them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prunus.data.rows import Rows
from prunus.errors import DataError

_PIXEL_VALUES = 256
_WHITE = _PIXEL_VALUES - 1


@dataclass(frozen=True)
class Split:
    """A training set parted in two: uint8 images (N, C, H, W), int64 labels (N,).

    Where the images are on the disk, both parts are Rows of them, which are read when they are asked for.
    """

    train_images: torch.Tensor | Rows
    train_labels: torch.Tensor
    val_images: torch.Tensor | Rows
    val_labels: torch.Tensor


@dataclass(frozen=True)
class ImageData:
    """An image-classification data set, decoded: images uint8 (N, C, H, W), labels int64 (N,) that index `classes`.

    `mean` and `std` have one value per channel, in 0..1, measured on the training images. `skipped` counts the images
    left out because they were unreadable or of an odd size (`skip_bad_images`). Where the images are more than memory
    may hold, `on_disk` is True, and they are tensors that the system reads from there.
    """

    name: str
    classes: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: int = 0
    on_disk: bool = False

    def split(self, validation: int | float = 0.1, seed: int = 0) -> Split:
        """Hold out part of the training set, every class in proportion; the same seed gives the same images.

        `validation` is a fraction in (0, 1) or a number of images. Raises DataError if a part would be empty.
        """
        total = len(self.train_labels)
        size = round(validation * total) if isinstance(validation, float) else validation
        if not 0 < size < total:
            raise DataError(
                f"{self.name}: cannot hold out {validation} of {total} training images for validation; "
                f"give a fraction between 0 and 1, or a number from 1 to {total - 1}"
            )
        held_out = stratified_choice(self.train_labels, size, seed)
        parts = (~held_out, held_out)
        train, val = (
            Rows(self.train_images, part.nonzero().flatten()) if self.on_disk else self.train_images[part]
            for part in parts
        )
        return Split(train, self.train_labels[parts[0]], val, self.train_labels[parts[1]])


def stratified_choice(labels: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Choose `size` examples, every class in proportion (largest remainders first): bool (N,), True = chosen."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(labels)
    quota = counts.double() * size / len(labels)
    taken = quota.floor().long()
    # Ties between equal remainders are broken at random, else the first classes would always be favoured.
    order = torch.randperm(len(counts), generator=generator)
    by_remainder = order[torch.argsort((quota - taken)[order], descending=True, stable=True)]
    taken[by_remainder[: size - int(taken.sum())]] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in enumerate(taken.tolist()):
        members = torch.nonzero(labels == label).flatten()
        chosen[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return chosen


def make_image_data(
    name: str,
    classes: Sequence[str],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    skipped: int = 0,
    on_disk: bool = False,
) -> ImageData:
    """Build an ImageData from (images uint8 (N, C, H, W), labels (N,)) pairs, and measure mean and std."""
    train_images, train_labels = train
    test_images, test_labels = test
    mean, std = channel_statistics(train_images)
    return ImageData(
        name,
        tuple(classes),
        torch.from_numpy(train_images),
        torch.from_numpy(train_labels.astype(np.int64)),
        torch.from_numpy(test_images),
        torch.from_numpy(test_labels.astype(np.int64)),
        mean,
        std,
        skipped,
        on_disk,
    )


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of uint8 images (N, C, H, W), on the 0..1 scale.

    Counted over the 256 pixel values in whole numbers, so that no float copy of the images is made and nothing is
    rounded before the end. A constant channel has std 1, since images are divided by it.
    """
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = sum(
            (np.bincount(part[:, channel].ravel(), minlength=_PIXEL_VALUES) for part in _chunks(images)),
            np.zeros(_PIXEL_VALUES, dtype=np.int64),
        )
        number, total, squares = (
            sum(count * value**power for value, count in enumerate(counts.tolist())) for power in range(3)
        )
        means.append(total / (number * _WHITE))
        stds.append(math.sqrt(number * squares - total**2) / (number * _WHITE) or 1.0)
    return tuple(means), tuple(stds)


def _chunks(images: np.ndarray, size: int = 4096) -> list[np.ndarray]:
    # np.bincount copies its input to int64, eight times the bytes: a part at a time bounds that.
    return [images[start : start + size] for start in range(0, len(images), size)]
