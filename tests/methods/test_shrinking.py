"""A network that loses channels while it trains: what goes where, and that nothing but the dropped channels changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.criteria import CRITERIA, score
from prunus.graph.channels import ChannelGraph, Keep
from prunus.graph.trace import trace
from prunus.methods.shrinking import Shrunk
from prunus.migration import carry_over, migrate_optimizer
from prunus.models import build_model
from prunus.plan import plan_from_keep
from prunus.surgery import remove
from prunus.verify import verify

EXAMPLE = torch.zeros(2, 3, 32, 32)
NETWORKS = ("resnet8", "densenet40", "squeezenet", pytest.param("shufflenetv2", marks=pytest.mark.slow))


def built(name: str) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    model = build_model(name)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return model, trace(model, EXAMPLE)


def drawn(graph: ChannelGraph, alive: Keep, seed: int) -> Keep:
    """Drop a random part of what is alive, to counts that each group allows."""
    generator = np.random.default_rng(seed)
    keep = alive.copy()
    for group in graph.groups:
        piece = group.piece_of
        now = np.bincount(piece[alive[group.channels]], minlength=piece.max() + 1)
        counts = group.counts[:, : piece.max() + 1]
        fitting = counts[(counts <= now).all(axis=1) & (counts.sum(axis=1) >= 2)]
        wanted = fitting[generator.integers(len(fitting))] if len(fitting) else now
        for number, count in enumerate(wanted):
            mine = group.channels[(piece == number) & alive[group.channels]]
            keep[generator.permutation(mine)[count:]] = False
    return keep


@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_are_one_removal_bit_for_bit_in_weights_and_momentum(name: str) -> None:
    model, graph = built(name)
    first = drawn(graph, graph.keep_all(), 1)
    second = drawn(graph, first, 2)
    assert 0 < (~first).sum() < (~second).sum()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)

    one = Shrunk.of(model, graph, first)
    small = remove(one.whole, graph, one.plan)
    moved = carry_over(optimizer, model, small, Shrunk.of(model, graph, graph.keep_all()).steps_to(one))
    one.whole.apply(lambda module: [p.data.fill_(7.0) for p in module.parameters()] and None)  # unfold fills it anew
    two = Shrunk.of(one.unfold(small), graph, second)
    smaller = remove(two.whole, graph, two.plan)
    moved = carry_over(moved, small, smaller, one.steps_to(two))

    plan = plan_from_keep(graph, second)
    at_once = remove(model, graph, plan)
    expected = migrate_optimizer(optimizer, model, (at_once, graph, plan))
    assert smaller.state_dict().keys() == at_once.state_dict().keys()
    assert all(torch.equal(tensor, at_once.state_dict()[key]) for key, tensor in smaller.state_dict().items())
    for mine, theirs in zip(smaller.parameters(), at_once.parameters(), strict=True):
        assert torch.equal(moved.state[mine]["momentum_buffer"], expected.state[theirs]["momentum_buffer"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_small_network_is_the_unfolded_one_silenced(name: str) -> None:
    model, graph = built(name)
    shrunk = Shrunk.of(model, graph, drawn(graph, graph.keep_all(), 3))
    small = remove(model, graph, shrunk.plan)
    for tensor in small.parameters():
        tensor.data.uniform_(-0.2, 0.3)  # as if it had been trained on
    found = verify(shrunk.unfold(small), small, graph, shrunk.plan, torch.randn(2, 3, 32, 32))
    assert found.passed, found.failure
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    shrunk.fold(small)
    assert all(torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items())


def test_an_unfolded_network_has_zeros_where_channels_have_gone_and_what_changes_there_goes_nowhere() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    graph = trace(model, torch.zeros(1, 1, 2, 2))
    keep = graph.keep_all()
    keep[graph.group("0").channels[1]] = False
    shrunk = Shrunk.of(model, graph, keep)
    small = remove(model, graph, shrunk.plan)
    small[0].weight.data[:] = torch.tensor([5.0, 6.0]).view(2, 1, 1, 1)
    whole = shrunk.unfold(small)
    assert whole[0].weight.flatten().tolist() == [5.0, 0.0, 6.0]
    assert whole[1].running_var.tolist() == [1.0, 1.0, 1.0]
    assert (whole[3].weight[:, 1] == 0).all()
    assert torch.equal(whole[3].bias, model[3].bias)
    whole[0].weight.data[:] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    shrunk.fold(small)
    assert small[0].weight.flatten().tolist() == [1.0, 3.0]
    assert model[0].weight.shape == (3, 1, 1, 1)  # and the first network is left alone
    assert not torch.equal(model[0].weight, whole[0].weight)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_takes_an_unfolded_network(criterion: str) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", 10, 1)
    graph = trace(model, torch.zeros(2, 1, 8, 8))
    shrunk = Shrunk.of(model, graph, drawn(graph, graph.keep_all(), 5))
    whole = shrunk.unfold(remove(model, graph, shrunk.plan))
    batches: list[tuple[Tensor, Tensor]] = [(torch.randn(8, 1, 8, 8), torch.arange(8))]
    scores = score(whole, graph, criterion, calibration=batches)
    assert all(values.isfinite().all() for values in scores.values())


@pytest.fixture(scope="module")
def small_resnet() -> tuple[nn.Module, ChannelGraph]:
    return built("resnet8")


@given(seeds=st.tuples(st.integers(0, 1000), st.integers(0, 1000)))
@settings(max_examples=8, deadline=None)
def test_composed_plans_are_one_removal(small_resnet: tuple[nn.Module, ChannelGraph], seeds: tuple[int, int]) -> None:
    model, graph = small_resnet
    first = plan_from_keep(graph, drawn(graph, graph.keep_all(), seeds[0]))
    small = remove(model, graph, first)
    again = trace(small, EXAMPLE)
    second = plan_from_keep(again, drawn(again, again.keep_all(), seeds[1]))
    in_rounds = remove(small, again, second).state_dict()
    whole = first.compose(second)
    assert whole.before.macs == first.before.macs and whole.after.macs == second.after.macs
    at_once = remove(model, graph, whole).state_dict()
    assert in_rounds.keys() == at_once.keys()
    assert all(torch.equal(tensor, at_once[key]) for key, tensor in in_rounds.items())
