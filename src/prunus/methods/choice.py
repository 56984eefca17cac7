"""How channels are chosen: score them, then allocate within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.allocation import Budget, Scope, allocate
from prunus.criteria import Calibration, Criterion, score_each
from prunus.criteria.registry import Normalize, normalization
from prunus.graph.channels import ChannelGraph, Keep
from prunus.plan import PruningPlan, plan_from_keep


@dataclass(frozen=True)
class Choice:
    """The settings of `prunus.score` and `prunus.allocate` that stay the same while a network is pruned in steps.

    `header_bytes` is what a file takes beside its tensors. `calibration` is for criteria that look at activations
    or gradients; it is used in every step, so that an iterator would not do. `options` are the criterion's own. `seen`
    is told the scores of every step.
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
    seen: Callable[[Mapping[str, Tensor]], None] | None = None

    @property
    def normalization(self) -> Normalize:
        """How the scores are normalised: `normalize`, or the criterion's own way where that is None."""
        return normalization(self.criterion, self.normalize)

    def scores(self, model: nn.Module, graph: ChannelGraph, budget: Budget) -> dict[str, Tensor]:
        """Score the channels of `model` for a budget, by its weights and statistics as they are now."""
        return self.scores_each(model, graph, budget, ())[self.normalization]

    def scores_each(
        self, model: nn.Module, graph: ChannelGraph, budget: Budget, others: Iterable[Normalize]
    ) -> dict[Normalize, dict[str, Tensor]]:
        """Score the channels once, by `normalization`, of which `seen` is told, and by other normalisations as well."""
        scores = score_each(
            model,
            graph,
            self.criterion,
            {self.normalization, *others},
            budget=budget,
            calibration=self.calibration,
            seed=self.seed,
            **self.options,
        )
        if self.seen is not None:
            self.seen(scores[self.normalization])
        return scores

    def plan(self, model: nn.Module, graph: ChannelGraph, budget: Budget, alive: Keep | None = None) -> PruningPlan:
        """Choose which channels of `model` stay, by its weights and statistics as they are now.

        Args:
            model: the network that `graph` was traced from.
            graph: its channel graph.
            budget: what the network may cost.
            alive: the channels that may be chosen, flags (channel_count + 1,) that a plan could keep; None for all.

        Raises:
            BudgetError: the budget cannot be reached.
        """
        scores = self.scores(model, graph, budget)
        if alive is None:
            return self.allocate(graph, scores, budget)
        plan = self.allocate(graph, _with_the_dead_last(scores, graph, alive), budget)
        return self._without_the_dead(plan, graph, budget, alive)

    def allocate(self, graph: ChannelGraph, scores: Mapping[str, Tensor], budget: Budget) -> PruningPlan:
        """Keep the best channels within a budget; BudgetError where it cannot be reached."""
        return allocate(
            graph,
            scores,
            budget,
            scope=self.scope,
            min_channels=self.min_channels,
            round_to=self.round_to,
            header_bytes=self.header_bytes,
            criterion=self.criterion
            if isinstance(self.criterion, str)
            else getattr(self.criterion, "__name__", "custom"),
        )

    def _without_the_dead(self, plan: PruningPlan, graph: ChannelGraph, budget: Budget, alive: Keep) -> PruningPlan:
        """Leave out what the budget had room for, but is gone."""
        chosen = plan.keep_array(graph)
        if not (chosen & ~alive).any():
            return plan
        return plan_from_keep(
            graph,
            chosen & alive,
            criterion=plan.criterion,
            budget=budget.to_dict(),
            header_bytes=self.header_bytes,
            notes=plan.notes,
        )


def _with_the_dead_last(scores: Mapping[str, Tensor], graph: ChannelGraph, alive: Keep) -> dict[str, Tensor]:
    """Return scores that rank every channel which is gone behind all others, so that it is chosen last."""
    lowest = min((float(values.min()) for values in scores.values()), default=0.0)
    last = lowest - 1.0 - abs(lowest)
    return {
        group.name: torch.from_numpy(np.where(alive[group.channels], scores[group.name].numpy(), last))
        for group in graph.groups
    }
