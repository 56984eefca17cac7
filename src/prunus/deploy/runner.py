"""A file that has been opened in its runtime: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunus.deploy.file_info import FileInfo
from prunus.errors import DataError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Runner:
    """An exported network that runs: what its file says, the runtime's name and version, and one call of it."""

    info: FileInfo
    runtime: str
    infer: Callable[[Array], Array]

    def __call__(self, images: Array) -> Array:
        """Run the network on float32 images (N, C, H, W), normalised, and return its output, (N, classes).

        Where the file is fixed to a batch, the images go through it in pieces of that size.

        Raises:
            DataError: the images have another shape than the network takes.
        """
        if images.shape[1:] != self.info.input_shape:
            takes, given = ("×".join(map(str, shape)) for shape in (self.info.input_shape, images.shape[1:]))
            raise DataError(f"the network takes images of {takes}, and these are {given}")
        images = np.ascontiguousarray(images, dtype=np.float32)
        size = self.info.batch
        if size is None or size == len(images):
            return self.infer(images)
        if len(images) % size:
            raise DataError(f"the file runs {size} images at a time, and {len(images)} is no multiple of it")
        return np.concatenate([self.infer(images[start : start + size]) for start in range(0, len(images), size)])
