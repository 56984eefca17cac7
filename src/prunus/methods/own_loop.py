"""Pruning inside a training loop of the user's own: two calls, and the loop stays theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from prunus.allocation import Budget, Scope
from prunus.api import PruneResult
from prunus.cost import predict_cost
from prunus.criteria import Calibration, Criterion
from prunus.errors import ConfigError, VerificationError
from prunus.graph.channels import Keep
from prunus.graph.ignore import with_outputs, without
from prunus.graph.trace import Inputs, trace
from prunus.methods.choice import Choice
from prunus.methods.dynamic import DynamicSearch, ramp
from prunus.methods.penalties import PENALTIES, apply_penalty, known_name
from prunus.methods.schedules import carry_out


@dataclass(frozen=True)
class EpochChoice:
    """What was chosen at the end of an epoch.

    `kept` of `channels` stay, `returned` of them had been masked before; `overlap` is the Jaccard overlap with the
    choice before. `macs` and `params` are what the network would have without the rest. `stable` says that the
    structure has been found: remove it now, or train on.
    """

    epoch: int
    kept: int
    channels: int
    returned: int
    overlap: float
    macs: int
    params: int
    stable: bool


class SoftPruner:
    """Finds the channels that a network does not need while your own loop trains it.

        pruner = prunus.SoftPruner(model, example_inputs, prunus.Budget(macs=0.5), ramp_epochs=10)
        for epoch in range(epochs):
            for images, labels in loader:
                ...                                     # forward, backward, optimizer.step(), all yours
                pruner.step(optimizer)
            print(pruner.epoch_end())
        result = pruner.remove()                        # a smaller network, proven
        optimizer = prunus.migrate_optimizer(optimizer, model, result)

    At the end of every epoch the channels are chosen anew by the weights as they are, to a budget that ramps up from
    the whole network to the target, and the rest is masked: scaled to almost nothing, but trained on, so that a channel
    may come back. This is method B's search, our reconstruction of Lu and Yuan 2019
    (doi:10.16451/j.cnki.issn1003-6059.201911010), in the manner of soft filter pruning (arXiv:1808.06866). With a
    `penalty`, `step` also draws the channels that may go towards zero.

    Where torch.distributed runs, rank 0 decides for all. `step` belongs after every step of the optimiser, so after the
    last of several accumulated batches; a gradient scaler needs nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        budget: Budget,
        *,
        ramp_epochs: int = 10,
        criterion: str | Criterion = "delivered_energy",
        calibration: Calibration | None = None,
        penalty: str | None = None,
        rho: float = 1e-4,
        scope: Scope = "global",
        min_channels: int | None = None,
        round_to: int = 1,
        ignore: Iterable[str] = (),
        freeze: Iterable[str] = (),
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Look at the network; nothing of it is changed yet.

        Args:
            model: the network that is trained, also one wrapped in DistributedDataParallel or DataParallel.
            example_inputs: what it takes; the removal is proven on them.
            budget: the target.
            ramp_epochs: epochs until the target is reached, at least 1.
            criterion: how channels are scored: a name, or a function.
            calibration: what a criterion measures on at the end of every epoch, as `prunus.score` takes it, but no
                iterator. By default a channel's variance is measured here, or follows from its BatchNorm without it.
            penalty: ``"group_lasso"``, ``"bn_scale"``, ``"sparsity_degree"``, or None for no sparse training.
            rho: the penalty's weight ρ ≥ 0 once the ramp is over; until then it grows as the ramp does.
            scope: ``"global"`` ranks all channels together, ``"local"`` takes the same fraction of every group.
            min_channels: how many channels every group keeps at least.
            round_to: the multiple that kept widths should be.
            ignore: names of layers or modules that keep their exact shape.
            freeze: names of layers or modules whose outputs stay as many.
            seed: for criteria that draw.
            **options: the criterion's own.

        Raises:
            ConfigError: an option is out of its range, `calibration` can be gone through only once, or the criterion
                needs one.
            BudgetError: the budget cannot be reached.
        """
        if isinstance(calibration, Iterator):
            raise ConfigError("calibration is gone through every epoch: pass a tensor (N, C, H, W) or a list.")
        if ramp_epochs < 1 or not rho >= 0:
            raise ConfigError(f"ramp_epochs is {ramp_epochs} and rho is {rho}; they should be at least 1 and 0.")
        if penalty is not None:
            known_name("penalty", penalty, PENALTIES)
        self.model = model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model
        self.example_inputs = example_inputs
        ignored, frozen = ((v,) if isinstance(v, str) else tuple(v) for v in (ignore, freeze))
        self.graph = with_outputs(without(trace(self.model, example_inputs), ignored), frozen)
        self.penalty, self.rho, self.epoch = penalty, rho, 0
        choice = Choice(criterion, options, None, scope, min_channels, round_to, seed=seed, calibration=calibration)
        dense = predict_cost(self.graph, self.graph.keep_all())
        self.search = DynamicSearch(self.graph, dense, budget, choice, ramp_epochs=ramp_epochs, agree=_of_rank_0)
        choice.plan(self.model, self.graph, budget)  # out of reach? better said now than after the ramp

    def step(self, optimizer: Optimizer | None = None) -> None:
        """Make the penalty's step; call it after every step of the optimiser.

        Args:
            optimizer: whose learning rate the penalty goes by: that of the first group. Not needed without a penalty.
        """
        if self.penalty is None:
            return
        if optimizer is None:
            raise ConfigError("the penalty goes by the learning rate: call step(optimizer).")
        rho = self.rho * ramp(self.epoch + 1, self.search.ramp_epochs)
        threshold = float(optimizer.param_groups[0]["lr"]) * rho
        apply_penalty(self.model, self.graph, PENALTIES[self.penalty], threshold)

    def epoch_end(self) -> EpochChoice:
        """Choose again, mask what was not chosen, and say what came of it."""
        self.epoch += 1
        self.search.epoch_start(self.model, self.epoch)
        found: dict[str, Any] = {}
        stable = self.search.epoch_end(self.model, self.epoch, found)
        return EpochChoice(
            epoch=self.epoch,
            kept=found["kept_channels"],
            channels=found["channels"],
            returned=found["returned_channels"],
            overlap=found["jaccard_overlap"],
            macs=found["macs"],
            params=found["params"],
            stable=stable,
        )

    def remove(self) -> PruneResult:
        """Choose for the last time, at the whole target, and return the smaller network; the model stays as it is.

        Raises:
            VerificationError: the smaller network is not the silenced original.
        """
        plan = self.search.final_plan(self.model)
        removal = carry_out(self.model, self.graph, plan, self.example_inputs)
        verification = removal.verifications[-1]
        if not verification.passed:
            raise VerificationError(f"the pruned network is not the silenced original: {verification.failure}")
        return PruneResult(removal.model, plan, verification, self.graph)

    def state_dict(self) -> dict[str, Any]:
        """Return what must be kept beside the model's own state to go on later, as JSON-able data."""
        return {"epoch": self.epoch, "search": self.search.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            FileFormatError: it is the state of another network.
        """
        self.search.load_state(state["search"])
        self.epoch = int(state["epoch"])


def _of_rank_0(keep: Keep) -> Keep:
    """Return what rank 0 has chosen, on all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return keep
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    flags = torch.from_numpy(keep.astype(np.uint8)).to(device)
    dist.broadcast(flags, 0)
    return flags.cpu().numpy().astype(np.bool_)
