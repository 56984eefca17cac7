"""Batches of images: taken from memory, or read ahead by threads where the set lies on the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

_WORKERS = 2  # threads; what they do is wait for the disk and copy
_AHEAD = 4  # batches that are ready or being read


class Images(Protocol):
    """What a training asks of its images, uint8 (N, C, H, W): a tensor has it, and so has a set that reads them."""

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102
    def __len__(self) -> int: ...
    def __getitem__(self, chosen: Tensor | slice, /) -> Tensor: ...
    def to(self, device: torch.device, /) -> Images: ...  # noqa: D102


def batches(images: Images, chosen: Sequence[Tensor]) -> Iterator[Tensor]:
    """Give the images of every batch in order; where `images` is no tensor in memory, threads read ahead.

    Args:
        images: uint8 (N, C, H, W).
        chosen: for every batch, the numbers of its images, int64.
    """
    if isinstance(images, Tensor):
        for numbers in chosen:
            yield images[numbers]
        return
    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="images") as pool:
        try:
            for numbers in chosen:
                waiting.append(pool.submit(images.__getitem__, numbers))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the training may leave in the middle
            for future in waiting:
                future.cancel()
