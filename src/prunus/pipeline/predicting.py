"""`prunus predict`: any exported file on images from the disk; the file says all that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from prunus.data.decode import Encoded, decode_all
from prunus.data.scaling import covering
from prunus.deploy import FileInfo, Runner, open_exported
from prunus.deploy.runner import Array
from prunus.errors import DataError, FileFormatError
from prunus.files import read_bytes
from prunus.pipeline.subjects import model_file


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image and their probabilities, in falling order."""

    image: Path
    classes: tuple[tuple[str, float], ...]


def predict(file: str | Path, images: Sequence[str | Path], *, top: int = 3, threads: int = 1) -> list[Prediction]:
    """Run an exported file, or a run's network, on images.

    An image of another size is scaled so that it covers the network's input, and the middle is taken.

    Args:
        file: any file that `prunus export` or `prunus.save` wrote, or a run folder.
        images: paths of images, in any format that training takes.
        top: how many classes of each.
        threads: CPU threads within an operator.

    Raises:
        FileFormatError: the file or an image cannot be read.
        DataError: the network takes no images.
    """
    runner = open_exported(model_file(file) or Path(file), threads)
    return [_predict_one(runner, Path(image), top) for image in images]


def _predict_one(runner: Runner, image: Path, top: int) -> Prediction:
    logits = runner(_as_input(image, runner.info))[0]
    if logits.ndim != 1:
        raise DataError(f"the network gives {logits.ndim} axes of values for an image, not one for every class")
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    names = runner.info.classes or tuple(f"class {index}" for index in range(len(logits)))
    if len(names) != len(logits):
        raise FileFormatError(f"the file names {len(names)} classes, and its network tells {len(logits)} apart")
    return Prediction(image, tuple((names[index], float(probabilities[index])) for index in order))


def _as_input(image: Path, info: FileInfo) -> Array:
    """Read an image as the network takes it: float32 (1, C, H, W)."""
    if len(info.input_shape) != 3 or info.input_shape[0] not in (1, 3):
        shape = "×".join(map(str, info.input_shape))
        raise DataError(f"the network takes {shape}, which is no image with one channel or three")
    channels, height, width = info.input_shape
    (decoded,) = decode_all([Encoded((image.name,), read_bytes(image, "image"))])
    if decoded.pixels is None:
        raise FileFormatError(f"cannot read the image {image}: {decoded.reason}")
    picture = Image.fromarray(decoded.pixels).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(covering(picture, width, height), dtype=np.float32) / 255
    pixels = pixels.reshape(height, width, channels)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (info.mean or (0.0,), info.std or (1.0,)))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None], dtype=np.float32)
