"""Some images of a set that is larger than memory, by their numbers; they are read when they are asked for."""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """The rows `numbers` of a tensor, without a copy of them.

    Args:
        images: (M, C, H, W), on the CPU.
        numbers: int64 (N,), each in 0..M-1.
        device: where rows go when they are read.
    """

    def __init__(self, images: Tensor, numbers: Tensor, device: torch.device | str = "cpu") -> None:
        self._images, self._numbers, self._device = images, numbers, device

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self._numbers), *self._images.shape[1:]))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """Read rows, by a slice or by int64 numbers (n,); (n, C, H, W)."""
        numbers = self._numbers[chosen.cpu() if isinstance(chosen, Tensor) else chosen]
        return self._images[numbers].to(self._device)

    def to(self, device: torch.device | str) -> Rows:
        """Have what is read put on a device; the set itself stays where it is."""
        return Rows(self._images, self._numbers, device)
