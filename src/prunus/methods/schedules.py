"""When channels go: all at once, or in rounds with training between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from prunus.allocation import Budget
from prunus.cost import Cost, predict_cost
from prunus.errors import VerificationError
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import Inputs
from prunus.methods.choice import Choice
from prunus.methods.shrinking import Shrunk
from prunus.plan import PruningPlan
from prunus.surgery import remove
from prunus.verify import Verification, verify

Recover = Callable[[nn.Module, nn.Module, ChannelGraph, PruningPlan], nn.Module]
"""Repairs a smaller network: (network, what a removal made of it, the network's graph, plan) → one of equal shapes."""


@dataclass(frozen=True)
class Removal:
    """A smaller network, which channels of the first one it keeps, and the proof of every removal on the way."""

    model: nn.Module
    plan: PruningPlan
    verifications: tuple[Verification, ...]

    def check(self) -> None:
        """Raise a VerificationError where a removal was not right."""
        for verification in self.verifications:
            if not verification.passed:
                raise VerificationError(f"the pruned network is not the silenced original: {verification.failure}")


def carry_out(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, inputs: Inputs, recover: Recover | None = None
) -> Removal:
    """Remove the channels that `plan` drops, compare with the silenced original on `inputs`, and then `recover`.

    Where the proof fails there is nothing to recover, and the network is that of the removal.
    """
    small = remove(model, graph, plan)
    verification = verify(model, small, graph, plan, inputs)
    if recover is not None and verification.passed:
        small = recover(model, small, graph, plan)
    return Removal(small, plan, (verification,))


def one_shot(
    model: nn.Module,
    graph: ChannelGraph,
    budget: Budget,
    choice: Choice,
    inputs: Inputs,
    recover: Recover | None = None,
) -> Removal:
    """Choose and remove once.

    Args:
        model: a trained network, left as it is.
        graph: its channel graph.
        budget: what the smaller network may cost.
        choice: how channels are chosen.
        inputs: what the removal is verified on, (N, C, H, W).
        recover: what is done to the smaller network once it is verified.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    return carry_out(model, graph, choice.plan(model, graph, budget), inputs, recover)


def iterative(
    model: nn.Module,
    graph: ChannelGraph,
    budget: Budget,
    choice: Choice,
    inputs: Inputs,
    *,
    rounds: int,
    between: Callable[[nn.Module, int], nn.Module],
    recover: Recover | None = None,
) -> Removal:
    """Remove in rounds; each takes an equal step of the cost, and all but the last are trained before the next.

    Every round chooses in a network of the first one's shapes, where what has gone is zero: layers compare as they do
    in one shot, and all rounds together are one plan of `model`.

    Args:
        model: a trained network, left as it is.
        graph: its channel graph.
        budget: what the smallest network may cost.
        choice: how channels are chosen, in every round anew.
        inputs: what every removal is verified on, (N, C, H, W).
        rounds: how many, at least 1.
        between: trains the network that a round left: (network, round from 1) → network of the same shapes.
        recover: what is done to a round's network, once it is verified, before it is trained.

    Returns:
        The network as the last round left it, untrained since; the plan has the indices of `model`.

    Raises:
        BudgetError: the budget cannot be reached.
        VerificationError: a round before the last removed wrongly, which no training could mend.
    """
    dense = predict_cost(graph, graph.keep_all(), header_bytes=choice.header_bytes)
    choice.plan(model, graph, budget)  # out of reach? better said before the first round than after the last
    total = one_shot(model, graph, _step_budget(budget, dense, 1, rounds), choice, inputs, recover)
    for number in range(2, rounds + 1):
        total.check()
        alive = total.plan.keep_array(graph)
        whole = Shrunk.of(model, graph, alive).unfold(between(total.model, number - 1))
        plan = choice.plan(whole, graph, _step_budget(budget, dense, number, rounds), alive)
        later = carry_out(whole, graph, plan, inputs, recover)
        total = replace(later, verifications=(*total.verifications, *later.verifications))
    return total


def _step_budget(budget: Budget, dense: Cost, number: int, rounds: int) -> Budget:
    """Return the budget of one round; that of the last is the user's, without a rounding of its own."""
    return budget if number == rounds else budget.partway(dense, number / rounds)
