"""How channels are chosen: score them, then allocate within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunus.allocation import Budget, Scope, allocate
from prunus.criteria import Calibration, Criterion, score
from prunus.criteria.registry import Normalize
from prunus.graph.channels import ChannelGraph
from prunus.plan import PruningPlan


@dataclass(frozen=True)
class Choice:
    """The settings of `prunus.score` and `prunus.allocate` that stay the same while a network is pruned in steps.

    `header_bytes` is what a file takes beside its tensors. `calibration` is for criteria that look at activations
    or gradients; it is used in every step, so that an iterator would not do. `options` are the criterion's own.
    """

    criterion: str | Criterion
    options: Mapping[str, Any] = field(default_factory=dict)
    normalize: Normalize | None = None
    scope: Scope = "global"
    min_channels: int | None = None
    round_to: int = 1
    header_bytes: int = 0
    seed: int = 0
    calibration: Calibration | None = None

    def scores(self, model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
        """Score the channels of `model`, by its weights and statistics as they are now."""
        return score(
            model,
            graph,
            self.criterion,
            normalize=self.normalize,
            calibration=self.calibration,
            seed=self.seed,
            **self.options,
        )

    def plan(self, model: nn.Module, graph: ChannelGraph, budget: Budget) -> PruningPlan:
        """Choose which channels of `model` stay, by its weights and statistics as they are now.

        Raises:
            BudgetError: the budget cannot be reached.
        """
        return allocate(
            graph,
            self.scores(model, graph),
            budget,
            scope=self.scope,
            min_channels=self.min_channels,
            round_to=self.round_to,
            header_bytes=self.header_bytes,
            criterion=self.criterion
            if isinstance(self.criterion, str)
            else getattr(self.criterion, "__name__", "custom"),
        )
