"""The dynamic search: its ramp, its masks, channels that come back, when it stops, and its state."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.allocation import Budget
from prunus.cost import Cost, predict_cost
from prunus.errors import BudgetError, FileFormatError
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.methods import Choice, DynamicSearch
from prunus.methods.dynamic import jaccard, ramp
from prunus.methods.masks import WHISPER
from prunus.models import build_model
from prunus.training import Recipe, fit

EXAMPLE = torch.zeros(1, 1, 8, 8)
CHOICE = Choice("fused_conv_bn")


def searching(budget: Budget, **options: Any) -> tuple[nn.Module, ChannelGraph, Cost, DynamicSearch]:
    torch.manual_seed(0)
    model = build_model("resnet8", 10, 1)
    graph = trace(model, EXAMPLE)
    dense = predict_cost(graph, graph.keep_all())
    return model, graph, dense, DynamicSearch(graph, dense, budget, CHOICE, **({"ramp_epochs": 3} | options))


def test_the_ramp_is_cubic_and_ends_exactly_at_the_target() -> None:
    assert ramp(1, 4) == pytest.approx(1 - 0.75**3)
    assert ramp(2, 4) == pytest.approx(1 - 0.5**3)
    assert ramp(4, 4) == ramp(9, 4) == 1.0


def test_every_epoch_is_within_its_budget_and_the_last_at_the_target() -> None:
    model, graph, dense, search = searching(Budget(macs=0.4, size=0.9))
    spent = []
    for epoch in range(1, 5):
        search.epoch_start(model, epoch)
        spent.append(predict_cost(graph, search.keep))
        allowed = dense.macs - 0.6 * dense.macs * ramp(epoch, 3)
        assert 0.9 * allowed < spent[-1].macs <= allowed + 1
    assert spent[-1].macs <= 0.4 * dense.macs
    assert spent[-1].size_bytes <= 0.9 * dense.size_bytes


def test_what_was_not_chosen_is_masked_and_all_else_is_left_alone() -> None:
    model, graph, _, search = searching(Budget(macs=0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    search.epoch_start(model, 3)
    kept = torch.from_numpy(search.keep[graph.group("layer2.0.conv1").channels])
    assert 0 < kept.sum() < len(kept)
    scale = model.get_parameter("layer2.0.bn1.weight")
    assert torch.equal(scale, torch.where(kept, 1.0, WHISPER))
    norms = {f"{layer.norm.weight}" for layer in graph.layers if layer.norm} | {
        f"{layer.norm.bias}" for layer in graph.layers if layer.norm
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name not in norms)


def test_a_masked_channel_comes_back_when_it_has_grown_again() -> None:
    model, graph, _, search = searching(Budget(macs=0.5))
    search.epoch_start(model, 3)
    group = graph.group("layer2.0.conv1")
    dropped = np.flatnonzero(~search.keep[group.channels])
    assert len(dropped) > 1
    with torch.no_grad():
        model.get_parameter("layer2.0.bn1.weight")[dropped[0]] = 50.0  # as training might
    search.epoch_start(model, 4)
    assert search.keep[group.channels[dropped[0]]]
    metrics: dict[str, Any] = {}
    search.epoch_end(model, 4, metrics)
    assert metrics["returned_channels"] == 1
    assert metrics["returned_channels_ever"] == 1
    assert metrics["kept_channels"] == int(search.keep[:-1].sum())
    assert 0.9 < metrics["jaccard_overlap"] < 1
    json.dumps(metrics, allow_nan=False)


def test_the_search_ends_once_the_structure_is_stable_at_the_target_and_not_before() -> None:
    model, _, _, search = searching(Budget(macs=0.999), ramp_epochs=3, stable_epochs=2)
    ends = []
    for epoch in range(1, 6):
        search.epoch_start(model, epoch)
        ends.append(search.epoch_end(model, epoch, {}))
        if ends[-1]:
            break
    # Hardly anything is masked, so every choice overlaps by 0.98; only epochs 3 and 4 are at the whole target.
    assert ends == [False, False, False, True]


def test_jaccard_by_hand() -> None:
    assert jaccard(np.array([True, True, False]), np.array([True, False, True])) == pytest.approx(1 / 3)
    assert jaccard(np.array([False]), np.array([False])) == 1.0


def test_the_state_survives_json_and_a_strange_one_is_refused() -> None:
    model, _, _, search = searching(Budget(macs=0.5))
    for epoch in (1, 2, 3):
        search.epoch_start(model, epoch)
    search.returned_ever.add(3)
    _, _, _, again = searching(Budget(macs=0.5))
    again.load_state(json.loads(json.dumps(search.state())))
    assert np.array_equal(again.keep, search.keep)
    assert again.keep.dtype == np.bool_
    assert (again.stable, again.returned_ever) == (search.stable, search.returned_ever)
    for wrong in ({}, search.state() | {"kept": [10**9]}, search.state() | {"kept": "all"}):
        with pytest.raises(FileFormatError, match="another network"):
            again.load_state(wrong)


def test_an_unreachable_target_is_an_error() -> None:
    model, _, _, search = searching(Budget(macs=0.001))
    with pytest.raises(BudgetError, match="not reachable"):
        search.epoch_start(model, 3)


def test_masked_channels_are_trained_on() -> None:
    model, graph, _, search = searching(Budget(macs=0.5), ramp_epochs=1)
    generator = torch.Generator().manual_seed(0)

    class Images:
        train_images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=generator)
        train_labels = torch.randint(0, 10, (64,), generator=generator)
        val_images, val_labels = train_images[:16], train_labels[:16]

    def as_input(images: Tensor, _: object = None) -> Tensor:
        return images.float() / 255

    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.1, schedule="constant", precision="float32")
    history = fit(model, Images(), recipe, augment=as_input, normalize=as_input, hook=search, progress=False)
    assert history[0]["kept_channels"] < graph.channel_count
    group = graph.group("layer2.0.conv1")
    masked = torch.from_numpy(~search.keep[group.channels])
    assert (model.get_parameter("layer2.0.bn1.weight")[masked].abs() > 3 * WHISPER).all()
