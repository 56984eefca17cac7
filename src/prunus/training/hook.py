"""What may look into a training, and steer it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer


class Hook(Protocol):
    """Called by `fit` around every epoch; epochs count from 1.

    A hook that remembers something hands it out through `state`, which `fit` stores in the checkpoint, and gets it back
    through `load_state` when a training goes on. Checkpoints are written after `epoch_end`, and also between two steps:
    then the next call is `epoch_end`, so that what `epoch_start` found out for it belongs to the state.
    """

    def epoch_start(self, model: nn.Module, epoch: int) -> None:
        """Prepare an epoch; the model's weights may be changed in place (its shapes may not)."""

    def epoch_end(self, model: nn.Module, epoch: int, metrics: dict[str, Any]) -> bool:
        """Look at the trained and validated epoch, add JSON-able values to its metrics; True ends the training."""

    def state(self) -> dict[str, Any]:
        """Hand out what the hook remembers, as a JSON-able dict."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` handed out."""


@runtime_checkable
class StepHook(Hook, Protocol):
    """A hook that also acts after every step of the optimiser."""

    def step_end(self, model: nn.Module, learning_rate: float) -> None:
        """Look at the step that was made with this rate; the model's weights may be changed in place."""


@runtime_checkable
class Reshaper(Hook, Protocol):
    """A hook that may train on with another network, of other shapes, from an epoch on; it holds what was trained."""

    def replace(self, model: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer] | None:
        """Return the network and the optimiser for the epoch that `epoch_start` has prepared; None to go on as is."""

    def rebuild(self, model: nn.Module) -> nn.Module:
        """Return, after `load_state`, a network of the shapes that the checkpoint has; `model` is the first one."""
