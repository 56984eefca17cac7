"""Networks drawn at random from all pieces: pruned by random plans, they equal their references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from tests.graph.strategy import Concat, Drawn, Residual, Step, networks
from tests.silenced import random_plan, randomise

import prunus

COUNTER_EXAMPLES = {
    "a sum of a concatenation's size": Drawn(
        stem=8,
        steps=(
            Step("chunk (CSP)", 6),
            Residual((Step("pixel shuffle", 4), Step("2 groups", 8))),
            Concat(((Step("GroupNorm, 2 groups", 4),), (), (Step("strided convolution", 5),))),
            Step("shuffle, groups first", 2),
        ),
        seed=1,
    ),
    "sums so far of channels in another order": Drawn(
        9, (Residual((Step("shuffle, 3 groups", 2), Step("cumulated over channels", 2))),), 1
    ),
    "a grouped weight as long one way as the other": Drawn(
        stem=7,
        steps=(
            Step("thirds by tensor_split", 7),
            Residual((Step("standardised weight, 2 groups", 11), Step("layer_norm by function, shape of x", 4))),
            Residual((Step("grouped view by a closure's number", 10),)),
            Step("groups of two channels, four out", 12),
            Step("tied transposed weight", 11),
            Step("Dropout2d", 8),
        ),
        seed=34554,
    ),
    "one channel left, which has no order": Drawn(
        7, (Step("choice in a buffer", 2), Step("roll of channels", 3)), 34708
    ),
    "a number for two widths of three": Drawn(
        4, (Step("non-local, softmax", 3), Step("grouped view by a closure's number", 6)), 34998
    ),
    "grouped transposed convolution in a sum": Drawn(
        4, (Residual((Step("transposed, 2 groups", 12),)), Concat(((), ()))), 34743
    ),
    "grouped transposed convolution before a softmax": Drawn(
        4, (Residual((Step("transposed, 2 groups", 12),)), Step("softmax over channels", 11)), 34743
    ),
    "a slice laid out channels last": Drawn(
        11,
        (Step("LayerNorm, channels last", 12), Step("halves by x.shape", 11), Step("swapaxes and linear", 11)),
        35607,
    ),
    "a grouped weight with a row a filter": Drawn(
        stem=13,
        steps=(
            Step("padding, zeros beside", 3),
            Step("split attention", 2),
            Step("double attention", 2),
            Concat(((Step("scaled convolution, 2 groups", 11),), (Step("channels sorted", 6),))),
        ),
        seed=2,
    ),
    "two copies of a channel, shuffled": Drawn(
        11, (Concat(((), (Step("double attention", 11),))), Step("shuffle, groups last", 8)), 722
    ),
    "a padding that keeps channels last": Drawn(
        stem=5,
        steps=(
            Step("swapaxes and linear", 4),
            Step("blur, expanded by shape", 8),
            Concat(((Step("swapaxes and linear", 4),), (), ())),
            Step("split by an attribute (Res2Net)", 2),
            Concat(((Step("chunk (CSP)", 2),), ())),
            Step("split by an attribute (Res2Net)", 2),
        ),
        seed=0,
    ),
    "channels of a kind that stay whole beside those that are counted": Drawn(
        stem=15,
        steps=(
            Residual((Step("variance of groups (EvoNorm)", 2),)),
            Residual((Step("every second channel", 9), Step("variance of groups (EvoNorm)", 2))),
        ),
        seed=0,
    ),
    "one channel of a kind in a narrower network, which has no label": Drawn(
        stem=15,
        steps=(
            Concat(((Step("depthwise with a multiplier", 7), Step("LayerScale (C,), viewed", 3)), ())),
            Residual((Step("BatchNorm", 7), Step("dynamic convolution", 9))),
            Step("GroupNorm, 1 group", 2),
            Step("multi-query attention", 2),
        ),
        seed=0,
    ),
    "channels that only the second use of a weight makes": Drawn(
        14, (Step("einsum with a weight", 12), Residual((Step("tied transposed weight", 7),))), 7085
    ),
    "a norm that only warns of its width": Drawn(7, (Step("InstanceNorm", 2),), 0),
    "a narrower stage moves what stays whole": Drawn(
        7, (Step("gated linear unit", 4), Step("cut at a literal", 2), Step("shuffle, the rest by −1", 9)), 36523
    ),
    "what no layer makes, shuffled with what one makes": Drawn(
        stem=10,
        steps=(
            Step("sum over groups", 2),
            Concat(((Step("chunk in a list (C2f)", 2),), (), ())),
            Step("ShuffleNetV2 unit", 2),
        ),
        seed=0,
    ),
    "two pairs of widths that add up alike": Drawn(
        4, (Residual((Step("dense block", 8), Step("halves by x.shape", 2))),), 0
    ),
}
"""Networks that went wrong once, as hypothesis printed them, and one to begin with."""


def prune_at_random(drawn: Drawn) -> None:
    model, x = randomise(drawn.build(), drawn.seed), drawn.inputs()
    graph = prunus.trace(model, x)
    plan = random_plan(graph, np.random.default_rng(drawn.seed))
    pruned = prunus.remove(model, graph, plan)
    verification = prunus.verify(model, pruned, graph, plan, x)
    assert verification.passed, verification
    assert verification.max_relative_error <= 1e-10
    for training in (False, True):
        torch.manual_seed(0)
        out = pruned.train(training)(x)
        assert out.shape == (2, 4)
        assert torch.isfinite(out).all()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(drawn=networks())
def test_they_run(drawn: Drawn) -> None:
    """Before anything is pruned, and alike each time they are built."""
    assert eval(repr(drawn)) == drawn
    for training in (False, True):
        first, second = (randomise(drawn.build(), drawn.seed).train(training) for _ in range(2))
        torch.manual_seed(0)
        out = first(drawn.inputs())
        torch.manual_seed(0)
        assert torch.equal(out, second(drawn.inputs()))
        assert out.shape == (2, 4)
        assert torch.isfinite(out).all()
        out.square().sum().backward()
        assert torch.isfinite(first.stem[0].weight.grad).all()
        assert first.stem[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", COUNTER_EXAMPLES)
def test_a_network_that_went_wrong(name: str) -> None:
    prune_at_random(COUNTER_EXAMPLES[name])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(drawn=networks())
def test_some_networks(drawn: Drawn) -> None:
    prune_at_random(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(8))
def test_many_networks(shard: int) -> None:
    """Two thousand in all, each shard its own, so that they can run side by side."""

    @seed(shard)
    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(drawn=networks())
    def pruned(drawn: Drawn) -> None:
        prune_at_random(drawn)

    pruned()
