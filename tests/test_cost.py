"""Predicted costs equal those that PyTorch counts on the network that is really there."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.cost import Cost, CostTable, count_cost, format_bytes, format_count, predict_cost
from prunus.errors import ModelError
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.models import MODELS, build_model
from prunus.plan import plan_from_keep
from prunus.surgery import remove
from tests.handmade import HANDMADE, SIDE, row_graph
from tests.silenced import random_keep


def table_cost(graph: ChannelGraph, keep: np.ndarray, header_bytes: int = 0) -> Cost:
    table = CostTable(graph, header_bytes=header_bytes)
    return Cost(*table.costs(table.widths(keep)).tolist())


def test_costs_by_hand() -> None:
    """conv1 3·6·9, BatchNorm 2·6, depthwise 6·9, conv2 6·5·9 + 5, linear 5·2 + 2; two channels go of each."""
    graph = row_graph()
    cost = predict_cost(graph, graph.keep_all(), header_bytes=100)
    assert cost.params == 162 + 12 + 54 + 275 + 12
    assert cost.macs == 162 * 64 + 54 * 64 + 270 * 16 + 10
    assert cost.size_bytes == 4 * (cost.params + 12) + 8 + 100
    keep = graph.keep_all()
    keep[[1, 4, 6, 10]] = False
    small = predict_cost(graph, keep)
    assert small.params == 108 + 8 + 36 + 4 * 3 * 9 + 3 + 3 * 2 + 2
    assert small.macs == 108 * 64 + 36 * 64 + 108 * 16 + 6
    assert small.size_bytes == 4 * (small.params + 8) + 8


@pytest.mark.parametrize("name", sorted(HANDMADE))
def test_handmade_graphs_are_what_the_trace_finds(name: str) -> None:
    make, graph_of = HANDMADE[name]
    model, graph = make(), graph_of()
    x = torch.randn(2, 3, SIDE, SIDE)
    assert (
        count_cost(model, x) == predict_cost(graph, graph.keep_all()) == predict_cost(trace(model, x), graph.keep_all())
    )
    assert [(g.name, g.channels.tolist()) for g in graph.groups] == [
        (g.name, g.channels.tolist()) for g in trace(model, x).groups
    ]


@cache
def traced(name: str) -> tuple[nn.Module, torch.Tensor, ChannelGraph]:
    model = build_model(name)
    x = torch.zeros(1, 3, 32, 32)
    return model, x, trace(model, x)


DEEPER = {f"resnet{depth}{kind}" for depth in (32, 44, 56, 110) for kind in ("", "_pad")} | {"vgg19_bn"}
"""Longer ones of the same blocks."""


@pytest.mark.parametrize("name", sorted(set(MODELS) - DEEPER))
def test_predicted_equals_counted(name: str) -> None:
    model, x, graph = traced(name)
    assert predict_cost(graph, graph.keep_all()) == count_cost(model, x)
    keep = random_keep(graph, np.random.default_rng(len(name)))
    predicted = predict_cost(graph, keep, header_bytes=7)
    assert predicted == count_cost(remove(model, graph, plan_from_keep(graph, keep)), x, header_bytes=7)
    assert predicted == table_cost(graph, keep, header_bytes=7)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["resnet8_pad", "shufflenetv2", "mobilenetv2", "densenet40"])
)
def test_the_table_says_the_same_tensor_by_tensor(seed: int, name: str) -> None:
    _, _, graph = traced(name)
    keep = random_keep(graph, np.random.default_rng(seed))
    assert table_cost(graph, keep) == predict_cost(graph, keep)


def test_the_table_prices_many_candidates_at_once() -> None:
    _, _, graph = traced("resnet8")
    table = CostTable(graph)
    keeps = [random_keep(graph, np.random.default_rng(seed)) for seed in range(5)]
    rows = table.costs(np.stack([table.widths(keep) for keep in keeps]))
    assert rows.tolist() == [table.costs(table.widths(keep)).tolist() for keep in keeps]
    assert len({tuple(row) for row in rows.tolist()}) == 5


def test_a_grouped_convolution_counts_its_own_inputs() -> None:
    """An input field that varies along both axes: two groups of two, one channel of each goes."""
    from tests.handmade import graph, tensor

    ids = np.arange(4)
    field = np.array([[0, 1], [0, 1], [2, 3], [2, 3]]).reshape(4, 2, 1, 1)
    before = tensor("before.weight", (4, 3, 1, 1), {0: ids})
    grouped = tensor("grouped.weight", (4, 2, 1, 1), {})
    grouped = type(grouped)(grouped.name, grouped.shape, grouped.dtype, True, (field,))
    made = graph([before, grouped], {"before": ids}, [], {"before": 1, "grouped": 10})
    keep = made.keep_all()
    keep[[1, 2]] = False
    assert predict_cost(made, keep) == table_cost(made, keep) == Cost(params=6 + 4, macs=6 + 40, size_bytes=40)


def test_counting_leaves_the_model_alone_and_is_for_one_example() -> None:
    model = build_model("resnet8").train()
    model.bn1.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert count_cost(model, torch.randn(5, 3, 16, 16)) == count_cost(model, (torch.randn(1, 3, 16, 16),))
    assert model.training and not model.bn1.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(ModelError, match="batch axis"):
        count_cost(model, ())


def test_numbers_for_people() -> None:
    assert [format_count(n) for n in (0, 999, 61_940, 255_340_000, 4_100_000_000)] == [
        "0",
        "999",
        "61.9 k",
        "255.3 M",
        "4.1 G",
    ]
    assert format_count(61_910_000, up=True) == "62.0 M"
    assert [format_bytes(n) for n in (12, 640_000, 1_120_000)] == ["12 B", "640.0 kB", "1.12 MB"]
    assert format_bytes(1_120_001, up=True) == "1.13 MB"
