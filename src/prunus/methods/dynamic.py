"""Method B's search: the structure is found while the network trains.

Our reconstruction of Lu and Yuan 2019 (doi:10.16451/j.cnki.issn1003-6059.201911010), whose full text is not public,
in the manner of soft filter pruning (arXiv:1808.06866).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from prunus.allocation import Budget
from prunus.cost import Cost
from prunus.errors import FileFormatError
from prunus.graph.channels import ChannelGraph, Keep
from prunus.methods.choice import Choice
from prunus.methods.masks import WHISPER, mask_channels
from prunus.plan import PruningPlan, plan_from_keep


class DynamicSearch:
    """A hook for `prunus.training.fit` that masks the least channels anew before every epoch.

    Each epoch's budget lies on a cubic ramp from the whole network to the target. Masked channels keep receiving
    gradient, so that a later choice may take them back. The search ends once the choice is stable at the whole target.

    Args:
        graph: the channel graph of the network that is trained.
        dense: what that network costs.
        budget: the target.
        choice: how channels are chosen.
        ramp_epochs: epochs until the target is reached, at least 1.
        stable_overlap: Jaccard overlap of two choices' kept channels from which on they count as the same.
        stable_epochs: how many choices in a row must be the same.
        agree: what the processes that train together make of their choices, (channel_count + 1,) flags, all alike.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        dense: Cost,
        budget: Budget,
        choice: Choice,
        *,
        ramp_epochs: int,
        stable_overlap: float = 0.98,
        stable_epochs: int = 2,
        agree: Callable[[Keep], Keep] | None = None,
    ) -> None:
        self.graph = graph
        self.dense = dense
        self.budget = budget
        self.choice = choice
        self.ramp_epochs = ramp_epochs
        self.stable_overlap = stable_overlap
        self.stable_epochs = stable_epochs
        self.agree = agree
        self.keep: Keep = graph.keep_all()
        self.stable = 0
        self.returned_ever: set[int] = set()
        self.findings: dict[str, Any] = {}

    def epoch_start(self, model: nn.Module, epoch: int) -> None:
        """Choose again, by the weights as they are now, and mask what was not chosen; epochs count from 1."""
        progress = ramp(epoch, self.ramp_epochs)
        at_target = progress == 1.0
        # The target as the user gave it: its last step has no rounding of its own.
        budget = self.budget if at_target else self.budget.partway(self.dense, progress)
        plan = self._agreed(self.choice.plan(model, self.graph, budget))
        keep = plan.keep_array(self.graph)
        overlap = jaccard(self.keep[:-1], keep[:-1])
        returned = np.flatnonzero(keep[:-1] & ~self.keep[:-1])
        self.stable = self.stable + 1 if at_target and overlap >= self.stable_overlap else 0
        self.returned_ever.update(returned.tolist())
        self.keep = keep
        self.findings = {
            "kept_channels": int(keep[:-1].sum()),
            "channels": self.graph.channel_count,
            "returned_channels": len(returned),
            "returned_channels_ever": len(self.returned_ever),
            "jaccard_overlap": round(overlap, 6),
            "macs": plan.after.macs,
            "params": plan.after.params,
        }
        mask_channels(model, self.graph, keep, WHISPER)

    def epoch_end(self, model: nn.Module, epoch: int, metrics: dict[str, Any]) -> bool:
        """Add what the choice found to the epoch's metrics; True once the structure is stable."""
        metrics.update(self.findings)
        return self.stable >= self.stable_epochs

    def final_plan(self, model: nn.Module) -> PruningPlan:
        """Choose for the last time, at the whole target, after the training has ended."""
        return self._agreed(self.choice.plan(model, self.graph, self.budget))

    def _agreed(self, plan: PruningPlan) -> PruningPlan:
        """Return the plan that all processes follow."""
        if self.agree is None:
            return plan
        own = plan.keep_array(self.graph)
        keep = self.agree(own)
        return plan if np.array_equal(keep, own) else plan_from_keep(self.graph, keep)

    def state(self) -> dict[str, Any]:
        """Hand out what the search remembers."""
        return {
            "kept": np.flatnonzero(self.keep[:-1]).tolist(),
            "stable": self.stable,
            "returned_ever": sorted(self.returned_ever),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` handed out; FileFormatError where it is that of another network."""
        kept, returned = self._channels(state.get("kept")), self._channels(state.get("returned_ever"))
        stable = state.get("stable")
        if kept is None or returned is None or not isinstance(stable, int):
            raise FileFormatError("the checkpoint's search is of another network: delete it to start the search again")
        self.keep = np.zeros(self.graph.channel_count + 1, dtype=np.bool_)
        self.keep[[*kept, -1]] = True
        self.stable = stable
        self.returned_ever = set(returned)

    def _channels(self, value: object) -> list[int] | None:
        """Return a list of the graph's channels as it is, and None for anything else."""
        whole = range(self.graph.channel_count)
        if not isinstance(value, list) or not all(type(item) is int and item in whole for item in value):
            return None
        return value


def ramp(epoch: int, ramp_epochs: int) -> float:
    """Return how far from the whole network (0) to the target (1) an epoch's budget is: fast first, then slower.

    The cubic of Zhu and Gupta 2017 (arXiv:1710.01878).
    """
    return 1.0 - (1.0 - min(1.0, epoch / ramp_epochs)) ** 3


def jaccard(first: Keep, second: Keep) -> float:
    """Return |A ∩ B| / |A ∪ B| of two sets given as flags; 1 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
