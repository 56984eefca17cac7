"""Residual branches that go as a whole: which there are, what is left of the network, and who chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus import Budget, ConfigError
from prunus.branches import choose_branches, drop_branches, find_branches
from prunus.graph.branches import without_branches
from prunus.graph.channels import LayerTime
from prunus.models import build_model
from tests.blocks import Bottleneck, Classifier
from tests.silenced import random_plan, randomise


class Squeezed(nn.Module):
    """An inverted residual with squeeze-and-excitation: what is gated adds to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Sequential(nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * gate)


class Deep(nn.Module):
    """Three convolutions, the middle one grouped, behind a BatchNorm of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.c = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(torch.relu(self.b(torch.relu(self.a(torch.relu(self.norm(x)))))))


class Twice(nn.Module):
    """A branch that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.c(torch.relu(self.a(x)))
        return x + self.c(torch.relu(self.a(x)))


class Carried(nn.Module):
    """Nothing goes past the first block: what the second adds to comes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))
        self.second = nn.Sequential(nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return x + self.second(x)


class HandedOn(nn.Module):
    """A depthwise convolution behind two layers: it gives their channels too, but only what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.deep(self.c(torch.relu(self.a(x)))))


INPUTS = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomise(build()).eval()


def classifier(*pieces: Callable[[], nn.Module]) -> nn.Module:
    return made(lambda: Classifier(nn.Sequential(*(piece() for piece in pieces))))


def names(model: nn.Module) -> list[str]:
    return [branch.name for branch in find_branches(prunus.trace(model, INPUTS))]


@contextmanager
def giving_zero(model: nn.Module, *modules: str) -> Iterator[None]:
    """Make modules give zero whatever they are given: what a network without these branches is."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out: torch.zeros_like(out))
        for name in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


RESNET20 = {f"layer{stage}.{block}.conv1": f"layer{stage}.{block}.bn2" for stage in (1, 2, 3) for block in (0, 1, 2)}

RESNET8 = {name: end for name, end in RESNET20.items() if ".0." in name}


def test_the_branches_of_a_residual_network_are_those_of_its_blocks() -> None:
    assert names(made(lambda: build_model("resnet20", in_channels=3))) == list(RESNET20)


@pytest.mark.parametrize("name", ["vgg16_bn", "googlenet", "densenet40", "shufflenetv2"])
def test_a_network_without_sums_has_none(name: str) -> None:
    model = build_model(name).eval()
    assert find_branches(prunus.trace(model, torch.zeros(2, 3, 32, 32))) == ()


def test_a_branch_that_runs_twice_is_none() -> None:
    assert names(classifier(Twice, Deep)) == ["piece.1.b"]


def test_a_layer_that_only_hands_channels_on_carries_none() -> None:
    assert names(classifier(HandedOn)) == []


@pytest.mark.parametrize(
    ("piece", "name", "end", "layers"),
    [
        (Squeezed, "piece.0.expand.0", "piece.0.project", 5),
        (Deep, "piece.0.b", "piece.0.c", 3),
        (lambda: Bottleneck(16, 16), "piece.0.cv1.0", "piece.0.cv2", 2),
    ],
)
def test_a_silent_branch_adds_nothing(piece: Callable[[], nn.Module], name: str, end: str, layers: int) -> None:
    model = classifier(piece)
    graph = prunus.trace(model, INPUTS)
    (branch,) = (found for found in find_branches(graph) if name in found.groups)
    assert len(branch.layers) == layers
    silent, smaller = drop_branches(model, graph, [branch.name])
    before = model(INPUTS)
    with giving_zero(model, end):
        wanted = model(INPUTS)
    assert torch.allclose(silent(INPUTS), wanted, atol=1e-6)
    assert not torch.allclose(before, wanted, atol=1e-3)
    assert torch.equal(model(INPUTS), before), "the original was changed"
    assert {group.name for group in smaller.groups if group.dropped} == set(branch.groups)
    assert find_branches(smaller) == ()
    for parameter in branch.parameters:
        assert not silent.get_parameter(parameter).any(), parameter


@given(gone=st.sets(st.sampled_from(list(RESNET8)), min_size=1), seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_any_removal_from_a_network_without_branches_is_that_of_the_network_without_them(
    gone: set[str], seed: int
) -> None:
    model = made(lambda: build_model("resnet8", in_channels=3)).double()
    inputs = INPUTS[:2].double()
    silent, graph = drop_branches(model, prunus.trace(model, inputs), sorted(gone))
    with giving_zero(model, *(RESNET8[name] for name in gone)):
        assert torch.allclose(silent(inputs), model(inputs), atol=1e-9)
    plan = random_plan(graph, np.random.default_rng(seed))
    pruned = prunus.remove(silent, graph, plan)
    assert prunus.verify(silent, pruned, graph, plan, inputs).passed
    scores = prunus.score(silent, graph, "l1_norm")
    allocated = prunus.allocate(graph, scores, Budget(macs=0.3), min_channels=4, round_to=4)
    for group in allocated.groups:
        assert (len(group.keep) == 1) == (group.name in gone), group.name
    small = prunus.remove(silent, graph, allocated)
    assert prunus.verify(silent, small, graph, allocated, inputs).passed
    assert prunus.count_cost(small, inputs[:1]).macs == allocated.after.macs


def test_the_one_that_does_least_goes_first_and_what_carries_the_rest_never() -> None:
    model = classifier(Carried, Deep, lambda: Bottleneck(16, 16), Squeezed)
    with torch.no_grad():
        model.piece[2].cv2[1].weight.mul_(1e-3)
        model.piece[2].cv2[1].bias.mul_(1e-3)
    model = prunus.recalibrate(model, INPUTS)
    graph = prunus.trace(model, INPUTS)
    chosen = choose_branches(model, graph, INPUTS, 3)
    assert chosen[0].branch.name == "piece.2.cv1.0"
    assert chosen[0].divergence < 1e-6 < chosen[1].divergence
    assert all(one.macs > 0 for one in chosen)
    gone = [one.branch.name for one in chosen]
    silent, _ = drop_branches(model, graph, gone, INPUTS)
    with torch.no_grad():
        ours, whole = (torch.log_softmax(network(INPUTS).double(), 1) for network in (silent, model))
    assert float((whole.exp() * (whole - ours)).sum(1).mean()) == pytest.approx(chosen[-1].divergence, rel=1e-4)
    with pytest.raises(ConfigError, match="give a number of 1 or more"):
        choose_branches(model, graph, INPUTS, -1)
    with pytest.raises(ConfigError, match=r"9 residual branches are to go, and the network has \d residual branches"):
        choose_branches(model, graph, INPUTS, 9)
    everything = [one.branch.name for one in choose_branches(model, graph, INPUTS, 4)]
    assert set(everything) == {"piece.0.second.0", "piece.1.b", "piece.2.cv1.0", "piece.3.expand.0"}


def test_their_time_goes_with_them() -> None:
    model = made(lambda: build_model("resnet8", in_channels=3))
    graph = prunus.trace(model, INPUTS)
    times = {layer.weight: LayerTime(10**6, 10**4, 10**4, 10**3) for layer in graph.layers}
    graph = graph.with_times(times)
    smaller = without_branches(graph, ["layer2.0.conv1"])
    before = prunus.predict_cost(graph, graph.keep_all()).latency_ps
    assert prunus.predict_cost(smaller, graph.keep_all()).latency_ps == pytest.approx(before, rel=1e-3)
    keep = graph.keep_all()
    keep[graph.group("layer2.0.conv1").channels[1:]] = False
    branch = sum(times[f"layer2.0.conv{which}.weight"].of(32, 16 if which == 1 else 32) for which in (1, 2))
    after = prunus.predict_cost(smaller, keep).latency_ps
    assert before - branch <= after < before - 0.95 * branch
    thin = prunus.predict_cost(graph, keep).latency_ps
    assert thin > before - 0.75 * branch


def test_a_wrong_name_is_told_the_right_ones() -> None:
    model = classifier(Deep)
    with pytest.raises(ConfigError, match=r"no residual branch 'nothing'; the network has: piece\.0\.b"):
        drop_branches(model, prunus.trace(model, INPUTS), ["nothing"])


def test_prune_leaves_them_out_and_training_does_not_wake_them() -> None:
    model = made(lambda: build_model("resnet20", in_channels=3))
    result = prunus.prune(model, INPUTS[:2], budget=Budget(macs=0.4), drop_branches=4, calibration=INPUTS)
    assert result.verification.passed
    assert len(result.dropped) == 4
    held = [name for one in result.dropped for name in one.branch.parameters]
    small = result.model.train()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    before = small.conv1.weight.clone()
    for _ in range(3):
        optimiser.zero_grad()
        small(INPUTS).square().mean().backward()
        optimiser.step()
    assert not torch.equal(small.conv1.weight, before)
    assert len(held) == 4 * 6
    for name in held:
        assert not small.get_parameter(name).any(), name
    with pytest.raises(ConfigError, match="drop_branches looks at images"):
        prunus.prune(model, INPUTS[:2], budget=Budget(macs=0.4), drop_branches=4)


@pytest.mark.parametrize("criterion", sorted(set(prunus.CRITERIA) - {"taylor"}))
def test_every_criterion_ranks_what_is_left(criterion: str) -> None:
    model = made(lambda: build_model("resnet8", in_channels=3))
    silent, graph = drop_branches(model, prunus.trace(model, INPUTS), ["layer2.0.conv1"])
    scores = prunus.score(silent, graph, criterion, calibration=INPUTS)
    whole = prunus.score(model, prunus.trace(model, INPUTS), criterion, calibration=INPUTS)
    assert not scores["layer2.0.conv1"].any()
    assert all(scores[name].any() for name in set(whole) - {"layer2.0.conv1"})
