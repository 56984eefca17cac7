"""How layers are made to compare, by hand; and what the removal of one channel saves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.handmade import HANDMADE, Row, Sum, row_graph, sum_graph
from torch import Tensor

from prunus.budget import Budget
from prunus.cost import predict_cost
from prunus.criteria import LayerValues, score
from prunus.criteria.coupled import Floats, saved_bytes, saved_macs, saved_params, saved_time
from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph, LayerTime
from prunus.graph.trace import trace
from prunus.models import build_model

MACS = 64 * 27 + 64 * 9 * 7 + 2
"""What one of Sum's channels costs: a filter of conv1; a row and a column of conv2, its corner once; a column of fc."""


def counted(layer: LayerValues) -> Tensor:
    """0, 1, 2, … in the order of the channels."""
    return torch.arange(len(layer.weight), dtype=torch.float64)


def test_gaussian() -> None:
    """0, 1, 2, 3: mean 1.5, variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25."""
    found = score(Sum(), sum_graph(), counted, normalize="gaussian")["conv1"]
    assert found.tolist() == pytest.approx([x / math.sqrt(1.25) for x in (-1.5, -0.5, 0.5, 1.5)])


def test_gaussian_of_equal_scores_is_zero_and_not_noise() -> None:
    equal = torch.tensor(0.1, dtype=torch.float64)
    assert equal.expand(6).numpy().std() > 0, "rounding"
    found = score(Row(), row_graph(), lambda layer: equal.expand(len(layer.weight)), normalize="gaussian")
    assert found["conv1"].tolist() == [0] * 6 and found["conv2"].tolist() == [0] * 5


def test_size() -> None:
    """A filter of conv1 has 27 weights, one of the depthwise convolution 9; one of conv2 54 and a bias."""
    found = score(Row(), row_graph(), counted, normalize="size")
    assert found["conv1"].tolist() == pytest.approx([c * (1 / 27 + 1 / 9) / 2 for c in range(6)])
    assert found["conv2"].tolist() == pytest.approx([c / 55 for c in range(5)])


def test_cost() -> None:
    found = score(Sum(), sum_graph(), counted, normalize="cost")["conv1"]
    assert found.tolist() == pytest.approx([c / MACS for c in range(4)])


@pytest.mark.parametrize(
    ("budget", "saved"),
    [
        (Budget(macs=0.5), saved_macs),
        (Budget(params=0.5), saved_params),
        (Budget(size=0.5), saved_bytes),
        (Budget(size="1kB"), saved_bytes),
        (Budget(macs=0.6, params=0.5), saved_params),
        (Budget(macs=0.5, params=0.6), saved_macs),
        (Budget(macs=0.5, params=10**9), saved_macs),
        (Budget(pruning_ratio=0.5), saved_macs),
        (Budget(latency="2us"), saved_macs),  # nothing was timed: `allocate` says so
        (None, saved_macs),
    ],
)
def test_the_cost_is_what_the_budget_leaves_least_of(
    budget: Budget | None, saved: Callable[[ChannelGraph], Floats]
) -> None:
    found = score(Row(), row_graph(), counted, reduce="first", normalize="cost", budget=budget)
    both = torch.cat([found["conv1"], found["conv2"]])
    counts = np.array([*range(6), *range(5)])
    assert both.tolist() == pytest.approx((counts / saved(row_graph())).tolist())
    assert len({tuple(own(row_graph())) for own in (saved_macs, saved_params, saved_bytes)}) == 3


def test_the_cost_of_a_budget_in_time_is_time() -> None:
    timed = row_graph().with_times({"conv1.weight": LayerTime(7, 10, 0, 2), "conv2.weight": LayerTime(0, 0, 100, 3)})
    by_time = score(Row(), timed, counted, normalize="latency")
    found = score(Row(), timed, counted, normalize="cost", budget=Budget(latency=0.5, macs=0.9))
    assert all(torch.equal(found[name], by_time[name]) for name in by_time)


def test_what_one_channel_saves_by_hand() -> None:
    assert saved_macs(sum_graph()).tolist() == [MACS] * 4
    # conv1 27 weights and depth 9 at 64 positions, a column of conv2 at 16; conv2 54 at 16, a column of fc
    assert saved_macs(row_graph()).tolist() == [64 * 36 + 16 * 45] * 6 + [16 * 54 + 2] * 5
    # the weights once; γ and β of the BatchNorm behind conv1, and in a file its mean and variance; a bias of conv2
    assert saved_params(row_graph()).tolist() == [36 + 45 + 2] * 6 + [54 + 1 + 2] * 5
    assert saved_bytes(row_graph()).tolist() == [4 * (36 + 45 + 4)] * 6 + [4 * (54 + 1 + 2)] * 5


@pytest.mark.parametrize("name", [*HANDMADE, "resnet8", "mobilenetv2"])
@pytest.mark.parametrize(
    ("cost", "saving"), [("macs", saved_macs), ("params", saved_params), ("size_bytes", saved_bytes)]
)
def test_what_one_channel_saves_is_what_the_cost_says(
    name: str, cost: str, saving: Callable[[ChannelGraph], Floats]
) -> None:
    graph = HANDMADE[name][1]() if name in HANDMADE else trace(build_model(name), torch.zeros(1, 3, 32, 32))
    whole, saved = getattr(predict_cost(graph, graph.keep_all()), cost), saving(graph)
    for channel in np.linspace(0, graph.channel_count - 1, 25).astype(int):
        keep = graph.keep_all()
        keep[channel] = False
        assert whole - getattr(predict_cost(graph, keep), cost) == saved[channel]


def test_latency() -> None:
    timed = row_graph().with_times({"conv1.weight": LayerTime(7, 10, 0, 2), "conv2.weight": LayerTime(0, 0, 100, 3)})
    # conv1 has 3 inputs; conv2 5 outputs for each of the six, and 6 inputs
    assert saved_time(timed).tolist() == [10 + 2 * 3 + 100 + 3 * 5] * 6 + [3 * 6] * 5
    found = score(Row(), timed, counted, normalize="latency")
    assert found["conv1"].tolist() == pytest.approx([c / 131 for c in range(6)])
    with pytest.raises(ConfigError, match="what the layers take is not known: measure it first"):
        score(Row(), row_graph(), counted, normalize="latency")


@pytest.mark.parametrize("name", ["row", "sum", "resnet8", "mobilenetv2"])
def test_what_one_channel_saves_in_time_is_what_the_cost_says(name: str) -> None:
    graph = HANDMADE[name][1]() if name in HANDMADE else trace(build_model(name), torch.zeros(1, 3, 32, 32))
    times = np.random.default_rng(0).integers(0, 100, (len(graph.contractions), 4)).tolist()
    timed = graph.with_times(
        {use.weight: LayerTime(*time) for use, time in zip(graph.contractions, times, strict=True)}
    )
    whole, saved = predict_cost(timed, timed.keep_all()).latency_ps, saved_time(timed)
    for channel in np.linspace(0, graph.channel_count - 1, 25).astype(int):
        keep = graph.keep_all()
        keep[channel] = False
        assert whole - predict_cost(timed, keep).latency_ps == saved[channel]
