"""Weight times gradient, against finite differences and autograd by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.criteria.calibrated import BATCHES, IMAGES, LABELS, Twice, double, layers_of
from tests.handmade import Concat, Row, Sum
from torch import Tensor, nn

from prunus.criteria import score
from prunus.errors import ConfigError
from prunus.graph.trace import trace


@pytest.mark.parametrize("make", [Row, Sum, Concat])
def test_weight_times_gradient_is_how_the_loss_changes_with_the_size_of_a_filter(make: type[nn.Module]) -> None:
    """d loss / dh of W_c·(1 + h), by central differences."""
    model = double(make())
    for name, values in layers_of(model, "first_order").items():
        assert values.first_order is not None and values.first_order.shape == (2, len(values.weight))
        for row, (images, labels) in zip(values.first_order, BATCHES, strict=True):
            for channel in range(len(values.weight)):
                losses = []
                for factor in (1 + 1e-5, 1 - 1e-5):
                    changed = copy.deepcopy(model)
                    changed.get_submodule(name).weight.data[channel] *= factor
                    losses.append(float(F.cross_entropy(changed(images), labels).detach()))
                assert row[channel].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_taylor_is_the_mean_square_over_batches() -> None:
    model = double(Row())
    graph, rows = trace(model, IMAGES), []
    for images, labels in BATCHES:
        F.cross_entropy(model(images), labels).backward()
        rows.append((model.conv2.weight * model.conv2.weight.grad).sum((1, 2, 3)).detach())
        model.zero_grad()
    found = score(model, graph, "taylor", calibration=iter(BATCHES))["conv2"]
    torch.testing.assert_close(found, (rows[0] ** 2 + rows[1] ** 2) / 2)


def test_shared_frozen_and_idle_layers_have_gradients_too() -> None:
    model = Twice().double()
    found = layers_of(model, "first_order")
    for name in ("stem", "shared"):
        weight = model.get_submodule(name).weight.requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(IMAGES[:4]), LABELS[:4]), weight)[0]
        rows = found[name].first_order
        assert rows is not None
        torch.testing.assert_close(rows[0], (weight * gradient).sum((1, 2, 3)).detach())
    assert found["idle"].first_order is not None and not found["idle"].first_order.any()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_wherever_one_asks(context: Callable[[], object]) -> None:
    model = double(Row())
    graph = trace(model, IMAGES)
    expected = score(model, graph, "taylor", calibration=BATCHES)
    with context():  # type: ignore[attr-defined]
        found = score(model, graph, "taylor", calibration=[(images + 0, labels + 0) for images, labels in BATCHES])
        assert all(torch.equal(found[key], expected[key]) for key in expected)


class Pair(Sum):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = super().forward(x)
        return out, out


def test_a_network_without_one_output_has_no_loss() -> None:
    model = Pair().double()
    with pytest.raises(ConfigError, match="the network returns tuple; wrap it"):
        score(model, trace(model, IMAGES), "taylor", calibration=BATCHES)
