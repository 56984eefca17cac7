"""Every network of the zoo, pruned at random keep sets, equals its silenced original: forward and backward."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.silenced import random_keep, randomise, worst_difference
from torch import nn

from prunus.cost import count_cost, predict_cost
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.models.registry import MODELS, build_model
from prunus.plan import plan_from_keep
from prunus.surgery import remove
from prunus.verify import verify

FIVE_POOLS = {"vgg16_bn", "vgg19_bn"}


@cache
def traced(name: str) -> tuple[nn.Module, torch.Tensor, ChannelGraph]:
    torch.manual_seed(0)
    model = randomise(build_model(name))
    x = torch.randn(2, 3, 32 if name in FIVE_POOLS else 16, 32 if name in FIVE_POOLS else 16)
    return model, x, trace(model, x)


@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_pruned_equals_silenced(name: str, seed: int) -> None:
    model, x, graph = traced(name)
    plan = plan_from_keep(graph, random_keep(graph, np.random.default_rng(seed)))
    pruned = remove(model, graph, plan)
    result = verify(model, pruned, graph, plan, x)
    assert result.passed, result
    assert predict_cost(graph, plan.keep_array(graph)) == count_cost(pruned, x)
    for training in (False, True):
        assert worst_difference(model, pruned, graph, plan, x, training=training) <= 1e-10


@pytest.mark.parametrize("name", sorted(MODELS))
def test_only_the_classifier_stays_whole(name: str) -> None:
    """Nothing but the logits is frozen, and every layer has its groups."""
    model, _, graph = traced(name)
    assert [freeze.reason for freeze in graph.frozen] == ["it is an output of the model"]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(graph.layers) >= len(convolutions)
    assert sum((layer.channels < 0).any() for layer in graph.layers) == 1


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_width_can_be_halved(name: str) -> None:
    """Also where it lies in pieces: some level keeps about a half of the channels."""
    for group in traced(name)[2].groups:
        kept = group.counts.sum(axis=1) / group.size
        assert group.size < 4 or abs(kept - 0.5).min() <= 0.13, (group.name, group.size, kept.tolist())


@pytest.mark.parametrize(
    ("name", "sizes"),
    {
        # the stem with every first stage's sum; the inner width of a block; what a wider stage pads its sum with
        "resnet8": {"conv1": 16, "layer1.0.conv1": 16, "layer2.0.conv1": 32, "layer2.0.conv2": 32},
        "resnet8_pad": {"conv1": 16, "layer2.0.conv2": 8, "layer2.0.conv2#2": 8, "layer3.0.conv2": 16},
        "shufflenetv2": {"stem.0": 24, "stage2.0.shortcut.2": 290, "stage2.0.branch.0": 58, "head.0": 1024},
    }.items(),
)
def test_groups_are_what_a_person_would_say(name: str, sizes: dict[str, int]) -> None:
    graph = traced(name)[2]
    assert {group: graph.group(group).size for group in sizes} == sizes


def test_the_original_is_untouched() -> None:
    model, x, graph = traced("resnet8")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    plan = plan_from_keep(graph, random_keep(graph, np.random.default_rng(1)))
    verify(model, remove(model, graph, plan), graph, plan, x)
    trace(model, x)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_wrong_removal_is_seen() -> None:
    """The proof can fail: swap two kept filters of one layer."""
    model, x, graph = traced("resnet8")
    plan = plan_from_keep(graph, graph.keep_all())
    pruned = remove(model, graph, plan)
    weight = next(iter(pruned.parameters()))
    with torch.no_grad():
        weight[[0, 1]] = weight[[1, 0]]
    result = verify(model, pruned, graph, plan, x)
    assert not result.passed and result.max_relative_error > 1e-3
    assert "differ" in result.failure
