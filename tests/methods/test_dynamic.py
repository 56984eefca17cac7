"""The dynamic search: its ramp, its masks, channels that come back, when it stops, and its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import step_by_step
from torch import Tensor, nn

from prunus.allocation import Budget
from prunus.cost import Cost, count_cost, predict_cost
from prunus.errors import BudgetError, ConfigError, FileFormatError
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.methods import Choice, DynamicSearch
from prunus.methods.dynamic import jaccard, ramp
from prunus.methods.masks import WHISPER
from prunus.models import build_model
from prunus.training import Recipe, fit

EXAMPLE = torch.zeros(1, 1, 8, 8)
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
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
    at = [found.name for found in graph.groups].index("layer2.0.conv1")
    assert metrics["groups"]["returned"] == [int(number == at) for number in range(len(graph.groups))]
    assert metrics["groups"]["kept"][at] == int(search.keep[group.channels].sum())
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


def shrinking(**options: Any) -> tuple[nn.Module, ChannelGraph, Cost, DynamicSearch]:
    return searching(Budget(macs=0.4), ramp_epochs=2, remove_after=1, inputs=IMAGES, **options)


def test_a_channel_leaves_only_after_so_many_epochs_in_a_row_and_never_comes_back() -> None:
    model, _, _, search = shrinking()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    search.epoch_start(model, 1)
    masked = ~search.keep
    assert masked.any()
    assert search.replace(model, optimiser) is None  # one choice, and no epoch yet that it was masked for
    search.epoch_start(model, 2)
    replaced = search.replace(model, optimiser)
    assert replaced is not None
    small, _ = replaced
    assert np.array_equal(~search.alive, masked & ~search.keep)
    assert 0 < (~search.alive).sum() < (~search.keep).sum()
    with torch.no_grad():
        for name, tensor in small.named_parameters():
            if name.endswith(".weight") and tensor.dim() == 1:
                tensor.fill_(1.0)  # nothing is masked any more, and all may be chosen again
    search.budget = Budget(macs=0.999)
    search.epoch_start(small, 3)
    assert not (search.keep & ~search.alive).any()


def test_epochs_that_a_channel_was_masked_count_in_a_row_only() -> None:
    model, graph, _, search = searching(Budget(macs=0.4), ramp_epochs=1, remove_after=2, inputs=IMAGES)
    group = graph.group("layer2.0.conv1")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scale = model.get_parameter("layer2.0.bn1.weight")
    search.epoch_start(model, 1)
    one, *others = np.flatnonzero(~search.keep[group.channels])
    assert others
    for epoch, grown in ((2, 0.0), (3, 50.0), (4, 0.0)):  # it comes back for one epoch, and is masked again
        with torch.no_grad():
            scale[one] = grown
        search.epoch_start(model, epoch)
        assert search.keep[group.channels[one]] == (grown > 0)
    assert search.replace(model, optimiser) is not None
    assert search.alive[group.channels[one]]
    assert not search.alive[group.channels[others]].all()


def test_masks_reach_the_network_that_was_left() -> None:
    model, graph, _, search = shrinking()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in (1, 2):
        search.epoch_start(model, epoch)
        replaced = search.replace(model, optimiser)
    assert replaced is not None
    small, _ = replaced
    for name, parameter in small.named_parameters():
        if "bn" in name and name.endswith("weight"):
            parameter.data.fill_(1.0)
    search.epoch_start(small, 3)
    channels = graph.group("layer3.0.conv1").channels
    kept = torch.from_numpy(search.keep[channels[search.alive[channels]]])
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(small.get_parameter("layer3.0.bn1.weight").data, torch.where(kept, 1.0, WHISPER))


def test_removal_in_training_is_masking_but_for_the_whisper() -> None:
    model, _, _, search = shrinking()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in (1, 2):
        search.epoch_start(model, epoch)
        masked = model.eval()(IMAGES)
        replaced = search.replace(model, optimiser)
    assert replaced is not None
    small, _ = replaced
    assert count_params(small) < count_params(model)
    assert torch.allclose(small.eval()(IMAGES), masked, rtol=1e-4, atol=1e-5)
    assert not torch.equal(small(IMAGES), masked)  # a millionth of the removed channels was still there


def test_removal_by_hand() -> None:
    """Two filters of 3 and 2 beside one of 0.1: the last is masked, then gone, and its momentum with it."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1)).eval()
    model[0].weight.data[:] = torch.tensor([3.0, 0.1, 2.0]).view(3, 1, 1, 1)
    graph = trace(model, torch.zeros(1, 1, 1, 1))
    dense = predict_cost(graph, graph.keep_all())
    search = DynamicSearch(
        graph, dense, Budget(macs=4), CHOICE, ramp_epochs=1, remove_after=2, inputs=torch.ones(1, 1, 1, 1)
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimiser.state[model[0].weight]["momentum_buffer"] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    widths = []
    for epoch in (1, 2, 3):
        search.epoch_start(model, epoch)
        replaced = search.replace(model, optimiser)
        widths.append(len((replaced[0] if replaced else model)[0].weight))  # type: ignore[index]
    assert widths == [3, 3, 2]
    assert replaced is not None
    small, moved = replaced
    assert small[0].weight.flatten().tolist() == [3.0, 2.0]  # type: ignore[index]
    assert moved.state[small[0].weight]["momentum_buffer"].flatten().tolist() == [1.0, 3.0]  # type: ignore[index]
    assert search.findings["trained_macs"] == 4
    assert [proof.passed for proof in search.proofs] == [True]
    removal = search.finish(torch.ones(1, 1, 1, 1))
    assert [group.keep for group in removal.plan.groups] == [(0, 2)]
    assert [proof.passed for proof in removal.verifications] == [True, True, True]


class Digits:
    """Noise with labels: what is learnt does not matter here."""

    train_images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train_labels = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(1))
    val_images, val_labels = train_images[:16], train_labels[:16]


class Killed(Exception):
    pass


def run_search(folder: Path | None, stop_after: int = 99, **changes: Any) -> tuple[DynamicSearch, list[dict[str, Any]]]:
    model, _, _, search = shrinking(stable_overlap=1.1)
    recipe = Recipe(epochs=5, batch_size=16, learning_rate=0.1, schedule="constant", precision="float32")

    def as_input(images: Tensor, _: object = None) -> Tensor:
        return images.float() / 255

    def on_epoch(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == stop_after:
            raise Killed

    history = fit(
        model,
        Digits(),
        recipe,
        augment=as_input,
        normalize=as_input,
        hook=search,
        progress=False,
        checkpoint_dir=folder,
        on_epoch=on_epoch,
        **changes,
    )
    return search, history


def test_epochs_get_cheaper_and_a_stopped_search_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    search, history = run_search(None)
    macs = [row["trained_macs"] for row in history]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] > 1.5 * macs[-1]
    assert search.trained is not None
    assert count_cost(search.trained, EXAMPLE).macs == macs[-1]
    for stop in (1, 3, 4):
        with pytest.raises(Killed):
            run_search(tmp_path / "epochs", stop)
    expected = outcome(search, history)
    assert len(expected["verifications"]) > 2
    assert outcome(*run_search(tmp_path / "epochs")) == expected
    stops, found = step_by_step(lambda stopping: run_search(tmp_path / "steps", stopping=stopping))
    assert stops == 5 * 4 - 1
    assert outcome(*found) == expected


def outcome(search: DynamicSearch, history: list[dict[str, Any]]) -> dict[str, Any]:
    assert search.trained is not None
    weights = {name: tensor.tolist() for name, tensor in search.trained.state_dict().items()}
    removal = search.finish(EXAMPLE)
    return {
        "metrics": [row | {"seconds": 0} for row in history],
        "weights": weights,
        "plan": removal.plan,
        "verifications": removal.verifications,
    }


def test_a_finished_search_is_taken_up_as_it_ended(tmp_path: Path) -> None:
    search, history = run_search(tmp_path)
    again, told = run_search(tmp_path)
    assert told == history
    assert again.finish(EXAMPLE).plan == search.finish(EXAMPLE).plan


def test_widths_in_training_are_those_that_the_choice_may_find() -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 48, 3), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 32, 3, groups=4), nn.BatchNorm2d(32)]
    model: nn.Module = nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(32, 20, 1), nn.ReLU(), nn.Conv2d(20, 2, 1))
    graph = trace(model, IMAGES)
    choice = Choice("l1_norm", round_to=8)
    dense = predict_cost(graph, graph.keep_all())
    search = DynamicSearch(graph, dense, Budget(macs=0.5), choice, ramp_epochs=1, remove_after=1, inputs=IMAGES)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in (1, 2):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)  # so that some were masked for one epoch and some for two
        search.epoch_start(model, epoch)
        if replaced := search.replace(model, optimiser):
            model, optimiser = replaced
    assert any((search.masked_for[group.channels] <= 1).sum() % 8 for group in graph.groups)
    assert search.replace(model, optimiser) is None  # nothing more to remove
    assert (~search.alive).sum() >= 8
    for group in graph.groups:
        alive = search.alive[group.channels]
        assert group.allows(alive)
        assert alive.sum() % 8 == 0 or alive.all()
    assert search.finish(IMAGES).plan.after.macs <= 0.5 * dense.macs


def test_removal_wants_something_to_be_proven_on() -> None:
    with pytest.raises(ConfigError, match="inputs"):
        searching(Budget(macs=0.5), remove_after=1)


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
