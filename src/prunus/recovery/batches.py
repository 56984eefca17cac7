"""Calibration batches: checked, moved to where the network is, and gone through as often as a step needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError

AT_ONCE = 256
"""How many examples run together where that changes nothing but the memory it takes."""


def device_of(model: nn.Module) -> torch.device:
    """Return where a network's first tensor lies; the CPU for a network without any."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


class Batches:
    """Calibration inputs: a tensor (N, C, H, W), or an iterable of such that can be gone through again and again."""

    def __init__(self, batches: Tensor | Iterable[Tensor], device: torch.device) -> None:
        """Refuse what can be gone through only once.

        Raises:
            ConfigError: `batches` is an iterator, such as a generator, or no iterable at all.
        """
        if isinstance(batches, Iterator):
            raise ConfigError(
                f"batches is a {type(batches).__name__}, which can be gone through only once, and the images are "
                "needed several times: pass a tensor (N, C, H, W) or a list of batches, such as list(batches)."
            )
        if not isinstance(batches, Iterable):
            raise ConfigError(
                f"batches is of type {type(batches).__name__}; pass a tensor (N, C, H, W) or a list of such tensors."
            )
        self._batches: Iterable[Tensor] = [batches] if isinstance(batches, Tensor) else batches
        self.device = device

    def __iter__(self) -> Iterator[Tensor]:
        """Give the batches as they are.

        Raises:
            ConfigError: there is none, or one is not a tensor of at least one example.
        """
        count = 0
        for batch in self._batches:
            if not isinstance(batch, Tensor) or not batch.dim() or not len(batch):
                what = f"a tensor {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
                raise ConfigError(
                    f"a calibration batch is {what}; it should be images alone, (N, C, H, W), without labels: "
                    "batches=[images for images, _ in loader]."
                )
            count += 1
            yield batch.to(self.device)
        if not count:
            raise ConfigError("there is no calibration batch: pass a tensor (N, C, H, W) or a list of such tensors.")

    def parts(self) -> Iterator[Tensor]:
        """Give the same examples in the same order, at most AT_ONCE at a time."""
        for batch in self:
            yield from batch.split(AT_ONCE)

    def count(self) -> int:
        """Return the number of examples."""
        return sum(len(batch) for batch in self)
