"""What a step did to which layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecoveredLayer:
    """A layer that lost input channels, the state-dict names of what was changed for it, and why not (all of) it was.

    `error_before` and `error_after` are what a refit measured: the squared error of the layer's outputs on the
    calibration data, over the squared size of the targets; None where nothing was fitted.
    """

    name: str
    changed: tuple[str, ...]
    reason: str = ""
    error_before: float | None = None
    error_after: float | None = None


@dataclass(frozen=True)
class RecoveryReport:
    """Every layer that lost input channels, in the order of execution where they were changed."""

    layers: tuple[RecoveredLayer, ...]

    @property
    def changed(self) -> tuple[RecoveredLayer, ...]:
        """The layers of which something was changed."""
        return tuple(layer for layer in self.layers if layer.changed)

    @property
    def left(self) -> tuple[RecoveredLayer, ...]:
        """The layers that were left as they are; `reason` says why."""
        return tuple(layer for layer in self.layers if not layer.changed)
