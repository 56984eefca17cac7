"""What goes with a channel elsewhere: its consumers, what they see, and the norm of all its slices."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.criteria.calibrated import BATCHES, IMAGES, Twice, double, layers_of
from tests.handmade import SIDE, Concat, Row, Sum, concat_graph, sum_graph
from torch import Tensor, nn

from prunus.criteria import score
from prunus.criteria.coupled import Consumers
from prunus.graph.ignore import keeping
from prunus.graph.trace import trace


def squared(weight: Tensor, *axes: int) -> list[float]:
    return weight.detach().double().square().sum(axes).tolist()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], tuple[list[int], list[float]]]]] = {
    "plain": (lambda: nn.Conv2d(4, 5, 3), lambda c: ([0, 1, 2, 3], squared(c.weight, 0, 2, 3))),
    "grouped": (
        lambda: nn.Conv2d(4, 6, 3, groups=2),
        lambda c: ([0, 1, 2, 3], squared(c.weight[:3], 0, 2, 3) + squared(c.weight[3:], 0, 2, 3)),
    ),
    "transposed": (lambda: nn.ConvTranspose2d(4, 5, 2), lambda c: ([0, 1, 2, 3], squared(c.weight, 1, 2, 3))),
    "transposed and grouped": (
        lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
        lambda c: ([0, 1, 2, 3], squared(c.weight, 1, 2, 3)),
    ),
    "linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 3)),
        lambda c: ([k // SIDE**2 for k in range(4 * SIDE**2)], squared(c[1].weight, 0)),
    ),
    "linear over positions": (
        lambda: Last(nn.Linear(4, 3)),
        lambda c: ([0, 1, 2, 3], squared(c.layer.weight, 0)),
    ),
}


class Last(nn.Module):
    """A layer that takes channels last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).flatten(1)


@pytest.mark.parametrize("case", CASES)
def test_consumers_of_every_kind(case: str) -> None:
    """Slice by slice: which channel it reads, the energy of its weights, and the variance of its input."""
    make, expected_of = CASES[case]
    consumer = make()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), consumer).double()
    (use,) = layers_of(model, "consumers", "variance")["0"].consumers or ()
    channels, energy = expected_of(consumer)
    assert use.channels.tolist() == channels and use.energy.tolist() == pytest.approx(energy)
    seen = model[0](IMAGES).detach()
    rows = seen.flatten(1).T if case == "linear" else seen.movedim(1, 0).flatten(1)
    assert use.variance is not None
    torch.testing.assert_close(use.variance, rows.var(1, correction=0))


def test_depthwise_convolutions_consume_nothing() -> None:
    values = layers_of(double(Row()), "consumers")
    assert [use.name for use in values["conv1"].consumers or ()] == ["conv2"]
    assert [use.name for use in values["depth"].consumers or ()] == ["conv2"]
    up = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=4), nn.Conv2d(4, 2, 1)).double()
    assert [use.name for use in layers_of(up, "consumers")["0"].consumers or ()] == ["2"]


def test_consumers_of_a_concatenation_read_their_own_part() -> None:
    model = double(Concat())
    found = layers_of(model, "variance")
    energy = squared(model.join.weight, 0, 2, 3)
    for name, part in (("left", slice(0, 3)), ("right", slice(3, 5))):
        (use,) = found[name].consumers or ()
        assert use.channels.tolist() == list(range(part.stop - part.start))
        assert use.energy.tolist() == pytest.approx(energy[part])
        assert use.variance is not None
        torch.testing.assert_close(
            use.variance, model.get_submodule(name)(IMAGES).detach().movedim(1, 0).flatten(1).var(1, correction=0)
        )


def test_a_module_that_runs_twice_consumes_twice() -> None:
    model = Twice().double()
    uses = layers_of(model, "variance")["stem"].consumers or ()
    assert [use.name for use in uses] == ["shared", "shared", "idle", "fc"]
    first, second = uses[0].variance, uses[1].variance
    assert first is not None and second is not None and not torch.allclose(first, second)


def test_delivered_energy_of_a_residual_sum() -> None:
    """conv2 with its BatchNorm's scale and fc read the sum at two places; both members score alike."""
    model = double(Sum())
    seen: dict[str, Tensor] = {}
    for name in ("conv2", "fc"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].detach()}))
    model(IMAGES)
    scale = model.bn2.weight / (model.bn2.running_var + model.bn2.eps).sqrt()
    inner = (model.conv2.weight * scale[:, None, None, None]).square().sum((0, 2, 3)).detach()
    expected = seen["conv2"].var((0, 2, 3), correction=0) * inner
    expected += seen["fc"].var(0, correction=0) * model.fc.weight.square().sum(0).detach()
    graph = trace(model, IMAGES)
    for calibration in (IMAGES, [IMAGES[:3], IMAGES[3:4], IMAGES[4:]], iter(BATCHES)):
        found = score(model, graph, "delivered_energy", calibration=calibration)["conv1"]
        torch.testing.assert_close(found, expected)
    assert "conv1" in score(model, sum_graph(), "delivered_energy", calibration=IMAGES)  # no sites: data-free instead


@pytest.mark.parametrize(
    ("layer", "rectified"),
    [
        (nn.ReLU(), True),
        (nn.ReLU(inplace=True), True),
        (nn.ReLU6(), True),
        (nn.SiLU(), True),
        (nn.Hardswish(), True),
        (nn.Hardtanh(), False),
        (nn.Sigmoid(), False),
        (nn.Identity(), False),
    ],
)
@pytest.mark.parametrize("norm", [True, False])
def test_what_follows_directly_is_known(layer: nn.Module, rectified: bool, norm: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4) if norm else nn.Identity(), layer, nn.Conv2d(4, 2, 1))
    assert layers_of(model.double())["0"].rectified is rectified


def test_a_relu_behind_a_sum_does_not_follow_directly() -> None:
    values = layers_of(Sum().double())
    assert values["conv1"].rectified and not values["conv2"].rectified


# What goes with a channel


def test_group_norm_of_a_residual_sum() -> None:
    """A filter of each convolution, both BatchNorms' vectors, conv2's and fc's columns; no running statistics."""
    model = double(Sum())
    parts = [
        squared(model.conv1.weight, 1, 2, 3),
        squared(model.conv2.weight, 1, 2, 3),
        squared(model.conv2.weight, 0, 2, 3),
        squared(model.fc.weight, 0),
        *(squared(vector[:, None], 1) for bn in (model.bn1, model.bn2) for vector in (bn.weight, bn.bias)),
    ]
    expected = [math.sqrt(sum(column)) for column in zip(*parts, strict=True)]
    for graph in (sum_graph(), trace(model, IMAGES)):
        assert score(model, graph, "group_norm", normalize="none")["conv1"].tolist() == pytest.approx(expected)


def test_a_channel_that_a_layer_makes_twice_is_consumed_twice() -> None:
    """Channels 2, 0 and 2 again: what reads channel 2 reads the first and the last."""
    graph, model = concat_graph(), Concat()
    read = dict(model.named_parameters())
    consumers = Consumers(graph, lambda name: read[name].detach(), lambda layer: None, None)
    (use,) = consumers.of(np.array([2, 0, 2, -1]))
    assert use.channels.tolist() == [1, 0, 2]
    energy = squared(model.join.weight, 0, 2, 3)
    assert use.energy.tolist() == pytest.approx([energy[0], energy[2], energy[2]]) and use.variance is None


def test_what_always_stays_is_read_by_nobody() -> None:
    """`left` is kept whole: only `right`'s slices of `join` count, for a layer with a fixed channel as well."""
    graph, model = keeping(concat_graph(), ["left"], "a test"), Concat()
    read = dict(model.named_parameters())
    (use,) = Consumers(graph, lambda name: read[name].detach(), lambda layer: None, None).of(np.array([-1, 1, 0]))
    assert use.channels.tolist() == [2, 1]
    assert use.energy.tolist() == pytest.approx(squared(model.join.weight, 0, 2, 3)[3:])
