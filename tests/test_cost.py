"""Predicted costs equal those that PyTorch counts on the network that is really there."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.cost import (
    Cost,
    CostTable,
    GrowingCost,
    count_cost,
    format_bytes,
    format_count,
    format_latency,
    predict_cost,
)
from prunus.errors import ModelError, PlanError
from prunus.graph.channels import ChannelGraph, LabelledTensor, LayerTime
from prunus.graph.trace import trace
from prunus.models import MODELS, build_model
from prunus.plan import plan_from_keep
from prunus.surgery import remove
from tests.handmade import HANDMADE, SIDE, chain_graph, graph, row_graph, tensor
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
    rng = np.random.default_rng(seed)
    graph = graph.with_times(random_times(graph, rng))
    keep = random_keep(graph, rng)
    assert table_cost(graph, keep) == predict_cost(graph, keep)
    assert predict_cost(graph, keep).latency_ps > 0


def random_times(graph: ChannelGraph, rng: np.random.Generator) -> dict[str, LayerTime]:
    return {use.weight: LayerTime(*rng.integers(0, 1000, 4).tolist()) for use in graph.contractions}


def test_times_by_hand() -> None:
    """conv1 (6, 3), its depthwise one (6, 1), conv2 (5, 6), linear (2, 5); two channels go of each width."""
    graph = row_graph().with_times(
        {"conv1.weight": LayerTime(7, 10, 0, 1), "conv2.weight": LayerTime(0, 0, 100, 1000), "fc.weight": LayerTime(5)}
    )
    whole, keep = graph.keep_all(), graph.keep_all()
    keep[[1, 4, 6, 10]] = False
    assert predict_cost(graph, whole).latency_ps == 7 + 60 + 18 + 600 + 30_000 + 5
    assert predict_cost(graph, keep).latency_ps == 7 + 40 + 12 + 400 + 12_000 + 5
    assert table_cost(graph, keep) == predict_cost(graph, keep)
    with pytest.raises(PlanError, match=r"a time for 'conv3.weight', which is no weight .* nearest is 'conv"):
        graph.with_times({"conv3.weight": LayerTime(1)})


def test_times_for_people() -> None:
    assert [format_latency(n) for n in (0, 999, 812_000, 61_900_000, 2_314_000_000, 3 * 10**12)] == [
        *("0 ns", "1 ns", "812 ns", "61.90 µs", "2.31 ms", "3.00 s")
    ]
    assert format_latency(2_314_000_000, up=True) == "2.32 ms"


def test_the_table_prices_many_candidates_at_once() -> None:
    _, _, graph = traced("resnet8")
    table = CostTable(graph)
    keeps = [random_keep(graph, np.random.default_rng(seed)) for seed in range(5)]
    rows = table.costs(np.stack([table.widths(keep) for keep in keeps]))
    assert rows.tolist() == [table.costs(table.widths(keep)).tolist() for keep in keeps]
    assert len({tuple(row) for row in rows.tolist()}) == 5


def test_a_grouped_convolution_counts_its_own_inputs() -> None:
    """An input field that varies along both axes: two groups of two, one channel of each goes."""
    ids = np.arange(4)
    field = np.array([[0, 1], [0, 1], [2, 3], [2, 3]]).reshape(4, 2, 1, 1)
    before = tensor("before.weight", (4, 3, 1, 1), {0: ids})
    grouped = tensor("grouped.weight", (4, 2, 1, 1), {})
    grouped = type(grouped)(grouped.name, grouped.shape, grouped.dtype, True, (field,))
    made = graph([before, grouped], {"before": ids}, [], {"before": 1, "grouped": 10})
    keep = made.keep_all()
    keep[[1, 2]] = False
    assert predict_cost(made, keep) == table_cost(made, keep) == Cost(params=6 + 4, macs=6 + 40, size_bytes=40)


@st.composite
def pair_graphs(draw: st.DrawFn) -> ChannelGraph:
    """Tensors whose last axis runs along every pair of two kinds of channels, some of which are always kept."""
    sizes = draw(st.tuples(*[st.integers(2, 5)] * 3))
    ends = np.cumsum([0, *sizes])
    kinds = [np.arange(start, stop) for start, stop in pairwise(ends)]
    tensors = [tensor(f"own{k}.weight", (len(ids), 2, 1, 1), {0: ids}) for k, ids in enumerate(kinds)]
    for number in range(draw(st.integers(1, 3))):
        rows, left, right = (kinds[draw(st.integers(0, 2))] for _ in range(3))
        left = np.where(draw(st.booleans()) & (np.arange(len(left)) == 0), -1, left)
        length = len(left) * len(right)
        fields = (
            rows.reshape(-1, 1),
            np.repeat(left, len(right)).reshape(1, length),
            np.tile(right, len(left)).reshape(1, length),
        )
        tensors.append(LabelledTensor(f"t{number}.weight", (len(rows), length), torch.float32, True, fields))
    uses = {one.name.removesuffix(".weight"): draw(st.integers(0, 9)) for one in tensors}
    return graph(tensors, {f"own{k}": ids for k, ids in enumerate(kinds)}, [], uses)


def one_by_one(made: ChannelGraph, keep: np.ndarray) -> Cost:
    """Count the elements whose channels all stay."""
    kept = {name: int(np.broadcast_to(one.keep_mask(keep), one.shape).sum()) for name, one in made.tensors.items()}
    macs = sum(kept[use.weight] * use.positions for use in made.contractions)
    return Cost(sum(kept.values()), macs, 4 * sum(kept.values()))


@settings(max_examples=100, deadline=None)
@given(pair_graphs(), st.integers(0, 2**32 - 1))
def test_an_axis_along_pairs_of_channels_keeps_the_pairs_that_stay(made: ChannelGraph, seed: int) -> None:
    keep = random_keep(made, np.random.default_rng(seed))
    assert predict_cost(made, keep) == table_cost(made, keep) == one_by_one(made, keep)


def test_one_field_twice_along_an_axis_counts_once() -> None:
    ids = np.arange(4)
    made = graph([LabelledTensor("a.weight", (4,), torch.float32, True, (ids, ids.copy()))], {"a": ids}, [], {"a": 3})
    keep = made.keep_all()
    keep[[0, 2]] = False
    assert predict_cost(made, keep) == table_cost(made, keep) == Cost(params=2, macs=6, size_bytes=8)


def test_a_width_of_one_channel_makes_no_other_axis_shorter() -> None:
    made = chain_graph([4, 1], [1, 10, 100])
    keep = made.keep_all()
    keep[[0, 1]] = False
    assert (
        predict_cost(made, keep) == table_cost(made, keep) == Cost(params=4 + 2 + 3, macs=4 + 20 + 300, size_bytes=36)
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["resnet8", "shufflenetv2", "mobilenetv2", "densenet40"]))
def test_a_growing_cost_is_that_of_all_channels_so_far(seed: int, name: str) -> None:
    _, _, made = traced(name)
    rng = np.random.default_rng(seed)
    made = made.with_times(random_times(made, rng))
    keep, table, unlimited = random_keep(made, rng), CostTable(made, header_bytes=5), np.full(4, 2**62)
    growing = GrowingCost(table, table.counts(keep))
    for group in rng.permutation(np.arange(len(made.groups)))[:5]:
        missing = made.groups[group].channels[~keep[made.groups[group].channels]]
        keep[missing] = True
        expected = predict_cost(made, keep, header_bytes=5)
        exact = np.array([expected.params, expected.macs, expected.size_bytes, expected.latency_ps])
        if len(missing):
            before = growing.costs.tolist()
            assert not growing.grow(missing, exact - [0, 0, 1, 0]) and growing.costs.tolist() == before
        assert growing.grow(missing, exact if len(missing) else unlimited)
        assert growing.costs.tolist() == exact.tolist()


def test_channels_that_run_through_the_same_widths_are_one_class() -> None:
    """Memory grows with the network, not with its square: classes are the groups' pieces, not the channels."""
    _, _, made = traced("shufflenetv2")
    table = CostTable(made)
    pieces = sum(len(np.unique(group.piece_of)) for group in made.groups)
    assert len(table.counts(made.keep_all())) <= pieces + 1 < made.channel_count / 4


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
