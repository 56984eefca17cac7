"""Method B's search: the structure is found while the network trains.

Our reconstruction of Lu and Yuan 2019 (doi:10.16451/j.cnki.issn1003-6059.201911010), whose full text is not public,
in the manner of soft filter pruning (arXiv:1808.06866).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer

from prunus.allocation import Budget
from prunus.cost import Cost, predict_cost
from prunus.errors import ConfigError, FileFormatError, PlanError
from prunus.graph.channels import ChannelGraph, Keep
from prunus.graph.trace import Inputs
from prunus.ladders import ladder_of
from prunus.methods.choice import Choice
from prunus.methods.masks import WHISPER, mask_channels
from prunus.methods.schedules import Recover, Removal, carry_out
from prunus.methods.shrinking import Shrunk
from prunus.migration import carry_over
from prunus.plan import PruningPlan, plan_from_keep
from prunus.surgery import remove
from prunus.verify import Verification, verify


class DynamicSearch:
    """A hook for `prunus.training.fit` that masks the least channels anew before every epoch.

    Each epoch's budget lies on a cubic ramp from the whole network to the target. Masked channels keep receiving
    gradient, so that a later choice may take them back. With `remove_after`, a channel that was masked for so many
    epochs in a row, and is not chosen then, leaves the network, so that epochs get cheaper; every such removal is
    proven. The search ends once the choice is stable at the whole target.

    Args:
        graph: the channel graph of the network that is trained.
        dense: what that network costs.
        budget: the target.
        choice: how channels are chosen.
        ramp_epochs: epochs until the target is reached, at least 1.
        stable_overlap: Jaccard overlap of two choices' kept channels from which on they count as the same.
        stable_epochs: how many choices in a row must be the same.
        agree: what the processes that train together make of their choices, (channel_count + 1,) flags, all alike.
        remove_after: epochs in a row that a channel is masked before it is removed, at least 1; None: none is removed.
        inputs: what the removals are proven on, on the CPU; needed with `remove_after`.
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
        remove_after: int | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        if remove_after is not None and (remove_after < 1 or inputs is None):
            raise ConfigError(f"remove_after is {remove_after}: it should be at least 1, and come with inputs.")
        self.graph = graph
        self.dense = dense
        self.budget = budget
        self.choice = choice
        self.ramp_epochs = ramp_epochs
        self.stable_overlap = stable_overlap
        self.stable_epochs = stable_epochs
        self.agree = agree
        self.remove_after = remove_after
        self.inputs = inputs
        self.keep: Keep = graph.keep_all()
        self.alive: Keep = graph.keep_all()
        self.masked_for: npt.NDArray[np.int64] = np.zeros(graph.channel_count, np.int64)
        self.stable = 0
        self.returned_ever: set[int] = set()
        self.findings: dict[str, Any] = {}
        self.proofs: list[Verification] = []
        self.trained: nn.Module | None = None
        self._shrunk: Shrunk | None = None

    def epoch_start(self, model: nn.Module, epoch: int) -> None:
        """Choose again, by the weights as they are now, and mask what was not chosen; epochs count from 1."""
        progress = ramp(epoch, self.ramp_epochs)
        at_target = progress == 1.0
        # The target as the user gave it: its last step has no rounding of its own.
        budget = self.budget if at_target else self.budget.partway(self.dense, progress)
        whole = self.whole(model)
        plan = self._chosen(whole, budget)
        keep = plan.keep_array(self.graph)
        overlap = jaccard(self.keep[:-1], keep[:-1])
        back = keep & ~self.keep
        returned = np.flatnonzero(back[:-1])
        self.stable = self.stable + 1 if at_target and overlap >= self.stable_overlap else 0
        self.returned_ever.update(returned.tolist())
        self.masked_for = np.where(keep[:-1], 0, self.masked_for + 1)
        self.keep = keep
        self.findings = {
            "kept_channels": int(keep[:-1].sum()),
            "channels": self.graph.channel_count,
            "returned_channels": len(returned),
            "returned_channels_ever": len(self.returned_ever),
            "kept_once_masked": self.kept_once_masked(keep),
            "jaccard_overlap": round(overlap, 6),
            "macs": plan.after.macs,
            "params": plan.after.params,
            "groups": {**self._named(epoch), "kept": self._counts(keep), "returned": self._counts(back)},
        }
        mask_channels(whole, self.graph, keep, WHISPER)
        if self._shrunk is not None:
            self._shrunk.fold(model)

    def replace(self, model: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer] | None:
        """Remove what has been masked for long enough; the smaller network and its optimiser, or None.

        Raises:
            VerificationError: the smaller network is not the silenced one.
        """
        alive = self.alive if self.remove_after is None else self._left(self.remove_after)
        self.trained = model
        if not np.array_equal(alive, self.alive):
            later = Shrunk.of(self.whole(model), self.graph, alive)
            before = self._shrunk or Shrunk.of(model, self.graph, self.alive)
            assert self.inputs is not None
            device = _device(model)
            removal = carry_out(later.whole.cpu(), self.graph, later.plan, self.inputs)
            removal.check()
            self.proofs.extend(removal.verifications)
            later.whole.to(device)
            self.trained = removal.model.to(device)
            optimiser = carry_over(optimiser, model, self.trained, before.steps_to(later))
            self.alive, self._shrunk = alive, later
        self.findings |= {
            "removed_channels": int((~self.alive).sum()),
            "trained_macs": predict_cost(self.graph, self.alive).macs,
            "groups": {**self.findings["groups"], "removed": self._counts(~self.alive)},
        }
        return None if self.trained is model else (self.trained, optimiser)

    def epoch_end(self, model: nn.Module, epoch: int, metrics: dict[str, Any]) -> bool:
        """Add what the choice found to the epoch's metrics; True once the structure is stable."""
        metrics.update(self.findings)
        return self.stable >= self.stable_epochs

    def whole(self, model: nn.Module) -> nn.Module:
        """Return the trained network as large as the graph: itself, or with silent channels where some have gone."""
        return model if self._shrunk is None else self._shrunk.unfold(model)

    def final_plan(self, model: nn.Module) -> PruningPlan:
        """Choose for the last time, at the whole target, after the training has ended."""
        return self._chosen(self.whole(model), self.budget)

    def finish(self, inputs: Inputs, recover: Recover | None = None) -> Removal:
        """Choose and remove for the last time; the plan is one of the first network, and every removal was proven.

        Args:
            inputs: what the removal is proven on, on the CPU.
            recover: what is done to the network after the last removal, once it is proven.
        """
        assert self.trained is not None
        self.trained.cpu()
        whole = self.whole(self.trained).cpu()
        if self._shrunk is not None:  # what was trained is what the whole network, silenced, does
            self.proofs.append(verify(whole, self.trained, self.graph, self._shrunk.plan, inputs))
        plan = self._chosen(whole, self.budget)
        once = self.kept_once_masked(plan.keep_array(self.graph))
        kept = self.graph.channel_count - plan.removed
        note = f"{once or 'none'} of the {kept} channels that stay had been masked during the search, and came back"
        noted = plan.model_copy(update={"notes": (*plan.notes, note)})
        removal = carry_out(whole, self.graph, noted, inputs, recover)
        return dataclasses.replace(removal, verifications=(*self.proofs, *removal.verifications))

    def kept_once_masked(self, keep: Keep) -> int:
        """Return how many of the channels that `keep` keeps had been masked at some time."""
        masked = self.returned_ever | set(np.flatnonzero(~self.keep[:-1]).tolist())
        return int(keep[sorted(masked)].sum())

    def _named(self, epoch: int) -> dict[str, Any]:
        """Name the groups, in the order of their counts, and say how wide they are; only the first epoch needs it."""
        groups = self.graph.groups
        return {"name": [g.name for g in groups], "channels": [g.size for g in groups]} if epoch == 1 else {}

    def _counts(self, flags: Keep) -> list[int]:
        """Count the channels of every group that are flagged."""
        return [int(flags[group.channels].sum()) for group in self.graph.groups]

    def _chosen(self, whole: nn.Module, budget: Budget) -> PruningPlan:
        """Return the plan that all processes follow, for what is left of the network."""
        alive = None if self.alive.all() else self.alive
        plan = self.choice.plan(whole, self.graph, budget, alive)
        if self.agree is None:
            return plan
        own = plan.keep_array(self.graph)
        keep = self.agree(own)
        return plan if np.array_equal(keep, own) else plan_from_keep(self.graph, keep)

    def _left(self, remove_after: int) -> Keep:
        """Return what stays of the network that is trained: all but the channels that were masked for long enough.

        Of those as many stay as it takes to reach a width that the choice may find.
        """
        going = (self.masked_for > remove_after) & self.alive[:-1]
        rank = np.where(going, -self.masked_for, 1.0)
        rank[~self.alive[:-1]] = -np.inf
        alive = self.alive.copy()
        for group in self.graph.groups:
            values = rank[group.channels]
            ladder = ladder_of(group, values, self.choice.min_channels, self.choice.round_to)
            stays = np.flatnonzero(ladder.scores > 0)
            needed = stays[-1] + 1 if len(stays) else 1
            if group.dropped:  # silent from the first epoch on
                alive[group.channels] &= self.keep[group.channels]
                continue
            width = ladder.levels[np.searchsorted(ladder.levels, needed)]
            alive[ladder.ids[width:]] = False
        return alive

    def state(self) -> dict[str, Any]:
        """Hand out what the search remembers."""
        return {
            "kept": np.flatnonzero(self.keep[:-1]).tolist(),
            "alive": np.flatnonzero(self.alive[:-1]).tolist(),
            "masked_for": self.masked_for.tolist(),
            "stable": self.stable,
            "returned_ever": sorted(self.returned_ever),
            "proofs": [dataclasses.asdict(proof) for proof in self.proofs],
            "findings": dict(self.findings),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` handed out; FileFormatError where it is that of another network."""
        try:
            flags = {name: self._flags(state[name]) for name in ("kept", "alive", "returned_ever")}
            plan_from_keep(self.graph, flags["alive"])
            self.proofs = [Verification(**{**p, "mixing": tuple(p["mixing"])}) for p in state["proofs"]]
            masked_for, stable = np.array(state["masked_for"], np.int64), state["stable"]
            self.findings = dict(state["findings"])
            if masked_for.shape != self.masked_for.shape or not isinstance(stable, int):
                raise ValueError("of another network")
        except (PlanError, LookupError, TypeError, ValueError) as error:
            raise FileFormatError(
                "the checkpoint's search is of another network: delete it to start the search again"
            ) from error
        self.keep, self.alive, self.masked_for, self.stable = flags["kept"], flags["alive"], masked_for, stable
        self.returned_ever = set(np.flatnonzero(flags["returned_ever"][:-1]).tolist())

    def rebuild(self, model: nn.Module) -> nn.Module:
        """Return what is left of `model`, the whole network, by the state that was taken back."""
        self.trained = model
        if not self.alive.all():
            self._shrunk = Shrunk.of(model, self.graph, self.alive)
            self.trained = remove(model, self.graph, self._shrunk.plan)
        return self.trained

    def _flags(self, value: object) -> Keep:
        """Return a list of the graph's channels as flags; ValueError for anything else."""
        whole = range(self.graph.channel_count)
        if not isinstance(value, list) or not all(type(item) is int and item in whole for item in value):
            raise ValueError("no list of channels")
        flags = np.zeros(self.graph.channel_count + 1, dtype=np.bool_)
        flags[[*value, -1]] = True
        return flags


def ramp(epoch: int, ramp_epochs: int) -> float:
    """Return how far from the whole network (0) to the target (1) an epoch's budget is: fast first, then slower.

    The cubic of Zhu and Gupta 2017 (arXiv:1710.01878).
    """
    return 1.0 - (1.0 - min(1.0, epoch / ramp_epochs)) ** 3


def jaccard(first: Keep, second: Keep) -> float:
    """Return |A ∩ B| / |A ∪ B| of two sets given as flags; 1 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def _device(model: nn.Module) -> torch.device:
    return next(iter(model.parameters())).device
