"""One-shot and iterative removal: budgets, original indices, and proofs."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from tests.silenced import randomise
from torch import nn

from prunus.allocation import Budget, allocate
from prunus.cost import count_cost
from prunus.criteria import score
from prunus.errors import BudgetError, VerificationError
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.methods import Choice, iterative, one_shot, schedules
from prunus.models import build_model
from prunus.plan import PruningPlan, plan_from_keep
from prunus.surgery import remove
from prunus.verify import Verification, verify

INPUTS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CHOICE = Choice("l1_norm")


def network() -> nn.Module:
    torch.manual_seed(1)
    return randomise(build_model("resnet8")).eval()


def test_one_shot_removes_to_the_budget_and_proves_it() -> None:
    model = network()
    dense = count_cost(model, INPUTS)
    removal = one_shot(model, trace(model, INPUTS), Budget(macs=0.4), CHOICE, INPUTS)
    assert 0.3 * dense.macs < count_cost(removal.model, INPUTS).macs <= 0.4 * dense.macs
    assert removal.plan.criterion == "l1_norm"
    assert [v.passed for v in removal.verifications] == [True]
    removal.check()
    assert count_cost(model, INPUTS) == dense, "the original was changed"


def test_scores_per_cost_are_per_what_the_budget_limits() -> None:
    model, budget = network(), Budget(params=0.5)
    graph = trace(model, INPUTS)
    choice = dataclasses.replace(CHOICE, normalize="cost")
    scores = score(model, graph, "l1_norm", normalize="cost", budget=budget)
    assert choice.plan(model, graph, budget).groups == allocate(graph, scores, budget).groups
    per_mac = score(model, graph, "l1_norm", normalize="cost")
    assert choice.plan(model, graph, budget).groups != allocate(graph, per_mac, budget).groups


def test_rounds_approach_the_budget_and_the_plan_has_the_first_networks_indices() -> None:
    model = network()
    dense = count_cost(model, INPUTS)
    spent: list[float] = []

    def between(small: nn.Module, number: int) -> nn.Module:
        assert number == len(spent) + 1
        spent.append(count_cost(small, INPUTS).macs / dense.macs)
        return small

    removal = iterative(model, trace(model, INPUTS), Budget(macs=0.4), CHOICE, INPUTS, rounds=3, between=between)
    spent.append(count_cost(removal.model, INPUTS).macs / dense.macs)
    assert spent == pytest.approx([0.8, 0.6, 0.4], abs=0.03)
    assert all(s <= wanted for s, wanted in zip(spent, (0.8, 0.6, 0.4), strict=True))
    assert len(removal.verifications) == 3
    assert removal.plan.budget == {"macs": 0.4}
    assert removal.plan.before.macs == dense.macs
    assert removal.plan.after.macs == count_cost(removal.model, INPUTS).macs
    # Nothing was trained between, so removing the whole plan at once from the first network gives the same network.
    graph = trace(model, INPUTS)
    at_once = remove(model, graph, plan_from_keep(graph, removal.plan.keep_array(graph)))
    for name, tensor in at_once.state_dict().items():
        assert torch.equal(tensor, removal.model.state_dict()[name]), name


def test_rounds_share_a_pruning_ratio() -> None:
    model = network()
    removal = iterative(
        model,
        trace(model, INPUTS),
        Budget(pruning_ratio=0.5),
        dataclasses.replace(CHOICE, scope="local"),
        INPUTS,
        rounds=2,
        between=lambda small, _: small,
    )
    for group in removal.plan.groups:
        assert group.size // 2 - 1 <= len(group.keep) <= group.size // 2, group.name


def test_a_budget_out_of_reach_is_said_before_anything_is_trained() -> None:
    def between(small: nn.Module, number: int) -> nn.Module:
        raise AssertionError("trained in vain")

    with pytest.raises(BudgetError, match="not reachable"):
        iterative(network(), trace(network(), INPUTS), Budget(macs=0.0001), CHOICE, INPUTS, rounds=2, between=between)


def test_every_round_is_recovered_before_it_is_trained() -> None:
    events: list[str] = []
    seen: list[nn.Module] = []

    def recover(model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
        assert verify(model, small, graph, plan, INPUTS).passed, "network, graph and plan belong to this removal"
        events.append("recover")
        seen.append(copy.deepcopy(small))
        return seen[-1]

    def between(small: nn.Module, number: int) -> nn.Module:
        assert small is seen[-1]
        events.append(f"train {number}")
        return small

    removal = iterative(
        network(),
        trace(network(), INPUTS),
        Budget(macs=0.4),
        CHOICE,
        INPUTS,
        rounds=3,
        between=between,
        recover=recover,
    )
    assert events == ["recover", "train 1", "recover", "train 2", "recover"]
    assert removal.model is seen[-1]


def test_what_was_removed_wrongly_is_not_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> Verification:
        return dataclasses.replace(verify(*arguments), passed=False)

    def recover(*arguments: Any) -> nn.Module:
        raise AssertionError("recovered in vain")

    monkeypatch.setattr(schedules, "verify", failing)
    model = network()
    removal = one_shot(model, trace(model, INPUTS), Budget(macs=0.5), CHOICE, INPUTS, recover)
    assert not removal.verifications[0].passed


def test_a_wrong_removal_stops() -> None:
    removal = one_shot(network(), trace(network(), INPUTS), Budget(macs=0.5), CHOICE, INPUTS)
    wrong = dataclasses.replace(removal.verifications[0], passed=False, failure="outputs differ by 1e-3")
    with pytest.raises(VerificationError, match="outputs differ"):
        dataclasses.replace(removal, verifications=(wrong,)).check()


def test_rounds_of_a_network_that_shuffles_are_one_plan() -> None:
    torch.manual_seed(0)
    model = randomise(build_model("shufflenetv2")).eval()
    removal = iterative(
        model, trace(model, INPUTS), Budget(macs=0.5), CHOICE, INPUTS, rounds=2, between=lambda small, _: small
    )
    graph = trace(model, INPUTS)
    at_once = remove(model, graph, plan_from_keep(graph, removal.plan.keep_array(graph)))
    assert [v.passed for v in removal.verifications] == [True, True]
    for name, tensor in at_once.state_dict().items():
        assert torch.equal(tensor, removal.model.state_dict()[name]), name
