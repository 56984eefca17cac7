"""What criteria measure on: images, or images with labels, in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from prunus.errors import ConfigError

Calibration = Tensor | Iterable[Tensor | tuple[Tensor, Tensor]]
"""Images (N, C, H, W) as the model takes them, an iterable of such batches, or of (images, labels) pairs."""

ON_IMAGES = frozenset({"zero_fraction", "feature_rank", "variance", "refit_error"})
"""What is measured on images."""

ON_LABELS = frozenset({"first_order"})
"""What is measured on images with labels."""

_WANTED = "pass calibration=images, (N, C, H, W) as the model takes them, or an iterable of such batches"
_WITH_LABELS = "pass calibration=loader, an iterable of (images, labels) pairs, such as [(images, labels)]"


def measured(value: Tensor | None, field: str, criterion: str, layer: str) -> Tensor:
    """Return what was measured of a layer; a ConfigError says what is missing, where, and what to pass."""
    if value is None:
        raise ConfigError(missing(field, criterion, f" of layer {layer!r}"))
    return value


def missing(field: str, criterion: str, where: str = "") -> str:
    """Say that something was not measured, and what to pass."""
    if field in ON_LABELS:
        return f"{criterion} needs {field}{where}, which is measured on images with labels; {_WITH_LABELS}."
    other = '; or variance="data-free", which needs none' if criterion == "delivered_energy" else ""
    return f"{criterion} needs {field}{where}, which is measured on images; {_WANTED}{other}."


def batches_of(
    calibration: Calibration, device: torch.device, needs: Collection[str], criterion: str
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield batches of images on a device, each with its labels, or None where it has none.

    Raises:
        ConfigError: a batch is neither images nor a pair of images and labels, or labels are needed and not there.
    """
    lacking = sorted(ON_LABELS.intersection(needs))
    for number, batch in enumerate([calibration] if isinstance(calibration, Tensor) else calibration, 1):
        images, labels = _parts(batch, number)
        if labels is None and lacking:
            raise ConfigError(
                f"{criterion} needs labels to measure {lacking[0]}, and batch {number} of calibration holds images "
                f"alone; {_WITH_LABELS}."
            )
        yield images.to(device), None if labels is None else labels.to(device)


def _parts(batch: object, number: int) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor) and batch.dim() > 1:
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    got = f"a tensor of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
    raise ConfigError(
        f"batch {number} of calibration is {got}; it should be images, (N, C, H, W), or a pair (images, labels). One "
        "pair alone is passed as calibration=[(images, labels)]."
    )
