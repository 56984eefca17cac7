"""Images of any size to one size, alike in training and in prediction."""

from __future__ import annotations

import numpy as np
from PIL import Image

from prunus.data.dataset import ImageData, make_image_data
from prunus.errors import DataError

MIN_SIDE, MAX_SIDE = 4, 1024  # pixels: what the networks of the zoo can make something of, and what memory can hold


def covering(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale a picture, its sides in proportion, until it covers width × height pixels, and take the middle."""
    if picture.size == (width, height):
        return picture
    scale = max(width / picture.width, height / picture.height)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    scaled = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def scaled(data: ImageData, side: int) -> ImageData:
    """Scale a data set to side × side pixels; mean and standard deviation are measured anew."""
    return make_image_data(
        scaled_name(data.name, side),
        data.classes,
        (_all_scaled(data.train_images.numpy(), side), data.train_labels.numpy()),
        (_all_scaled(data.test_images.numpy(), side), data.test_labels.numpy()),
    )


def scaled_name(name: str, side: int | None) -> str:
    """Name a scaled data set, whose figures are its own: "CIFAR-10, 16×16"."""
    return name if side is None else f"{name}, {side}×{side}"


def check_side(side: int | None) -> None:
    """Refuse sides that no network takes.

    Raises:
        DataError: it is not in 4..1024.
    """
    if side is not None and not MIN_SIDE <= side <= MAX_SIDE:
        raise DataError(f"images of {side}×{side} pixels: the side is to be from {MIN_SIDE} to {MAX_SIDE}, e.g. 224")


def _all_scaled(images: np.ndarray, side: int) -> np.ndarray:
    """Scale (N, C, H, W) to (N, C, side, side)."""
    result = np.empty((*images.shape[:2], side, side), np.uint8)
    for image, small in zip(images, result, strict=True):
        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        pixels = np.asarray(covering(picture, side, side))
        small[:] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return result
