"""Method A's sparse training: a penalty after every step, and what becomes of the sparsity index meanwhile.

Part of our reconstruction of Bao et al. 2019 (doi:10.1109/siprocess.2019.8868491), whose full text is not public.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.criteria import Calibration, score
from prunus.errors import ConfigError, FileFormatError
from prunus.graph.channels import ChannelGraph
from prunus.methods.dynamic import ramp
from prunus.methods.penalties import (
    PENALTIES,
    Penalty,
    apply_penalty,
    known_name,
    penalty_value,
    sparsity_degree_at,
)

RHO_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda epoch, ramp_epochs: 1.0,
    "linear": lambda epoch, ramp_epochs: min(1.0, epoch / ramp_epochs),
    "cubic": ramp,
}
"""How ρ grows to its whole value: (epoch from 1, epochs of the ramp) → share in (0, 1]. The cubic is fast first."""

BINS = 50
"""Bins of the histogram of the sparsity index, from 0 to 1."""

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

REDUNDANT = 0.5
"""The sparsity index from which on a channel is counted as redundant."""


class SparseTraining:
    """A hook for `prunus.training.fit` that draws channels towards zero and records their sparsity index.

    After every step of the optimiser the penalty makes its own, by the learning rate times ρ. To an epoch's metrics it
    adds ``rho``, ``penalty`` (its value, without ρ), and of the sparsity index of all channels that may go, p in
    [0, 1], high = redundant: ``index_quantiles`` (at QUANTILES), ``index_histogram`` (counts in BINS equal bins),
    ``redundant_channels`` (p ≥ 0.5) and ``index_channels``. The first epoch's ``index_before`` is the histogram from
    before the training.

    Args:
        graph: the channel graph of the network that is trained.
        penalty: a key of PENALTIES: ``"group_lasso"``, ``"bn_scale"`` or ``"sparsity_degree"``.
        rho: the penalty's weight ρ ≥ 0 once the ramp is over.
        schedule: a key of RHO_SCHEDULES: ``"constant"``, ``"linear"`` or ``"cubic"``.
        ramp_epochs: epochs until ρ is reached, at least 1.
        degree: the sparsity degree of the index, as the criterion channel_sparsity takes it, like the next two.
        t: its threshold; also that of the penalty sparsity_degree, for which it must be above 0.
        lam: its λ.
        calibration: images for the activation degree.

    Raises:
        ConfigError: an unknown name, a number out of its range, a network of which nothing can be pruned, or a penalty
            on γ for one that has none.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        penalty: str = "group_lasso",
        rho: float = 1e-3,
        *,
        schedule: str = "linear",
        ramp_epochs: int = 1,
        degree: str = "weight",
        t: float = 0.1,
        lam: float = 1.0,
        calibration: Calibration | None = None,
    ) -> None:
        known_name("penalty", penalty, PENALTIES)
        known_name("ρ schedule", schedule, RHO_SCHEDULES)
        if not graph.groups:
            raise ConfigError("nothing of this network can be pruned, so that no channel can be drawn towards zero.")
        if ramp_epochs < 1 or not (math.isfinite(rho) and rho >= 0):
            raise ConfigError(f"ramp_epochs is {ramp_epochs} and rho is {rho}; they should be at least 1 and 0.")
        if penalty == "sparsity_degree" and not t > 0:
            raise ConfigError(f"the penalty sparsity_degree needs a threshold t above 0, and t is {t}.")
        if penalty == "bn_scale" and not any(_has_scale(graph)):
            raise ConfigError(
                "the penalty bn_scale draws the γ of BatchNorm, and no layer whose channels may go has one right "
                "behind it; pass penalty='group_lasso' or 'sparsity_degree'."
            )
        self.graph = graph
        self.penalty: Penalty = sparsity_degree_at(t) if penalty == "sparsity_degree" else PENALTIES[penalty]
        self.settings: dict[str, Any] = {
            "penalty": penalty,
            "rho": rho,
            "schedule": schedule,
            "ramp_epochs": ramp_epochs,
        }
        self.options: dict[str, Any] = {"degree": degree, "t": t, "lam": lam}
        self.calibration = calibration
        self.rho = 0.0
        self.before: list[int] = []

    def epoch_start(self, model: nn.Module, epoch: int) -> None:
        """Set the epoch's ρ; epochs count from 1."""
        if epoch == 1:
            self.before = histogram(self._index(model))
        share = RHO_SCHEDULES[self.settings["schedule"]](epoch, self.settings["ramp_epochs"])
        self.rho = self.settings["rho"] * share

    def step_end(self, model: nn.Module, learning_rate: float) -> None:
        """Make the penalty's step after one of the optimiser."""
        apply_penalty(model, self.graph, self.penalty, learning_rate * self.rho)

    def epoch_end(self, model: nn.Module, epoch: int, metrics: dict[str, Any]) -> bool:
        """Add what the epoch has made of penalty and index to its metrics; never ends the training."""
        index = self._index(model)
        quantiles = torch.quantile(index, torch.tensor(QUANTILES, dtype=index.dtype))
        metrics |= {
            "rho": self.rho,
            "penalty": round(penalty_value(model, self.graph, self.penalty), 6),
            "index_quantiles": [round(value, 6) for value in quantiles.tolist()],
            "index_histogram": histogram(index),
            "redundant_channels": int((index >= REDUNDANT).sum()),
            "index_channels": len(index),
        }
        if epoch == 1:
            metrics["index_before"] = self.before
        return False

    def state(self) -> dict[str, Any]:
        """Hand out what the training was told, and what the epoch goes by."""
        return {**self._told, "rho_now": self.rho, "before": self.before}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` handed out; FileFormatError where it is that of another sparse training."""
        wrong = [
            f"{name} is {state.get(name)} there and {value} here"
            for name, value in self._told.items()
            if state.get(name) != value
        ]
        wrong += [f"{name} is missing" for name in ("rho_now", "before") if name not in state]
        if wrong:
            raise FileFormatError(
                f"the checkpoint is of another sparse training: {', '.join(wrong)}; delete it to start this one again"
            )
        self.rho, self.before = state["rho_now"], state["before"]

    @property
    def _told(self) -> dict[str, Any]:
        return {**self.settings, **self.options}

    def _index(self, model: nn.Module) -> Tensor:
        """Return the sparsity index of all channels that may go, (channels,), on the CPU."""
        scores = score(
            model,
            self.graph,
            "channel_sparsity",
            normalize="none",
            calibration=self.calibration if self.options["degree"] == "activation" else None,
            **self.options,
        )
        return (1 - torch.cat([scores[group.name] for group in self.graph.groups])).clamp(0, 1)


def histogram(index: Tensor) -> list[int]:
    """Count the values of a sparsity index in BINS equal bins from 0 to 1."""
    return [int(count) for count in torch.histc(index, BINS, 0, 1)]


def _has_scale(graph: ChannelGraph) -> list[bool]:
    return [
        layer.norm is not None and layer.norm.weight is not None
        for layer in graph.layers
        if bool((layer.channels >= 0).any())
    ]
