"""A criterion's options chosen on held-out images, beside the same steps taken by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.silenced import randomise
from torch import Tensor, nn

import prunus
from prunus.criteria import LayerValues
from prunus.errors import BudgetError, ConfigError
from prunus.methods import calibrated

BUDGET = prunus.Budget(macs=0.5)
GRID = {"t": (0.1, 0.5), "lam": (0.0, 1.0)}


def pixels(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


CALIBRATION = pixels(24, 0)
IMAGES = pixels(60, 1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomise(prunus.build_model("resnet8", num_classes=10, in_channels=1)).eval()


@pytest.fixture(scope="module")
def held_out(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images with labels that the dense network's outputs decide."""
    with torch.no_grad():
        logits = model(IMAGES)
    return IMAGES, (logits - logits.mean(0)).argmax(1)  # a random network prefers one class


def choose(model: nn.Module, held_out: tuple[Tensor, Tensor], *arguments: Any, **options: Any) -> prunus.OptionsChoice:
    graph = prunus.trace(model, IMAGES[:2])
    settings = {"calibration": CALIBRATION, "held_out": held_out} | options
    return prunus.choose_options(model, graph, settings.pop("budget", BUDGET), *arguments, **settings)


@pytest.mark.parametrize("recover", ["recalibrate", "reconstruct"])
def test_every_point_is_what_the_steps_by_hand_give(
    model: nn.Module, held_out: tuple[Tensor, Tensor], recover: str
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grid = {"lam": (0.0, 1.0)}
    choice = choose(model, held_out, "channel_sparsity", grid, recover=recover)
    graph = prunus.trace(model, IMAGES[:2])
    for tried in choice.ranking:
        scores = prunus.score(model, graph, "channel_sparsity", **tried.options)
        plan = prunus.allocate(graph, scores, BUDGET)
        small = prunus.remove(model, graph, plan)
        if recover == "recalibrate":
            small = prunus.recalibrate(small, CALIBRATION)
        else:
            small, _ = prunus.reconstruct(model, small, graph, plan, CALIBRATION)
        with torch.no_grad():
            logits = small(held_out[0])
        assert tried.plan.after == plan.after and tried.plan.groups == plan.groups
        assert tried.accuracy == float((logits.argmax(1) == held_out[1]).double().mean())
        assert tried.loss == pytest.approx(float(nn.functional.cross_entropy(logits, held_out[1])), rel=1e-5)
    assert sorted(tried.options["lam"] for tried in choice.ranking) == [0.0, 1.0]
    assert len(held_out[1].unique()) > 5, "images of several classes"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_recovery_may_look_at_other_images_than_the_criterion(
    model: nn.Module, held_out: tuple[Tensor, Tensor]
) -> None:
    grid, few = {"degree": ("activation",), "lam": (0.0, 1.0)}, CALIBRATION[:12].split(6)
    found = choose(model, held_out, "channel_sparsity", grid, recover="reconstruct", recovery_images=few)
    graph = prunus.trace(model, IMAGES[:2])
    for tried in found.ranking:
        scores = prunus.score(model, graph, "channel_sparsity", calibration=CALIBRATION, **tried.options)
        plan = prunus.allocate(graph, scores, BUDGET)
        small, _ = prunus.reconstruct(model, prunus.remove(model, graph, plan), graph, plan, few)
        assert tried.plan.groups == plan.groups
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(small(held_out[0]), held_out[1]))
        assert tried.loss == pytest.approx(loss, rel=1e-5)


def test_the_best_comes_first_and_equal_arguments_give_equal_results(
    model: nn.Module, held_out: tuple[Tensor, Tensor]
) -> None:
    told: list[tuple[int, int]] = []
    first = choose(model, held_out, "channel_sparsity", GRID, progress=lambda done, of: told.append((done, of)))
    assert first.best is first.ranking[0]
    order = [(-tried.accuracy, tried.loss) for tried in first.ranking]
    assert order == sorted(order) and len(set(order)) > 1
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    batches = [(part, torch.zeros(len(part))) for part in CALIBRATION.split(24)]  # labels are not looked at
    assert choose(model, held_out, "channel_sparsity", GRID, calibration=iter(batches)) == first


def test_equal_plans_are_evaluated_once(
    model: nn.Module, held_out: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    removals: list[Any] = []

    def counted(*arguments: Any) -> nn.Module:
        removals.append(arguments)
        return prunus.remove(*arguments)

    monkeypatch.setattr(calibrated, "remove", counted)
    grids = [{"degree": ("hoyer",), "t": (0.1, 0.2, 0.5), "lam": (0.0,)}, {"degree": ("weight",), "lam": (0.0, 1.0)}]
    choice = choose(model, held_out, "channel_sparsity", grids)
    assert len(choice.ranking) == 5 and len(removals) == choice.evaluated == 3
    assert len({(tried.accuracy, tried.loss) for tried in choice.ranking if tried.options["degree"] == "hoyer"}) == 1


def test_a_criterion_that_measures_and_one_of_ones_own(model: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    default = choose(model, held_out)
    assert len(default.ranking) == 24
    assert {tried.options["degree"] for tried in default.ranking} == {"weight", "activation", "hoyer"}

    def power(layer: LayerValues, p: float = 2.0) -> Tensor:
        return layer.weight.flatten(1).abs().pow(p).sum(1)

    own = choose(model, held_out, power, {"p": [1.0, 2.0]})
    assert sorted(tried.options["p"] for tried in own.ranking) == [1.0, 2.0]
    row = own.best.to_dict()
    assert set(row) == {"options", "accuracy", "loss", "macs", "params"} and row["macs"] == own.best.plan.after.macs


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("channel_sparsity", {"tau": (1,)}), {}, "no option 'tau'"),
        (("channel_sparsity", {"t": 0.1}), {}, r"takes a list of values to try, such as \{'t': \[0.1\]\}"),
        (("channel_sparsity", {"degree": "hoyer"}), {}, "takes a list of values"),
        (("channel_sparsity", {"t": ()}), {}, "the grid is empty"),
        (("l1_norm",), {}, "no grid for l1_norm"),
        (("channel_sparsit",), {}, "did you mean 'channel_sparsity'"),
        ((), {"recover": "refit"}, "it is one of recalibrate, reconstruct"),
        ((), {"held_out": (IMAGES, torch.zeros(3))}, r"labels of shape \(3,\)"),
        ((), {"held_out": (IMAGES[:0], torch.zeros(0))}, "at least one image"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    model: nn.Module,
    held_out: tuple[Tensor, Tensor],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(model, options.pop("held_out", held_out), *arguments, **options)


def test_a_budget_out_of_reach_is_said(model: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(BudgetError, match="not reachable"):
        choose(model, held_out, budget=prunus.Budget(macs=0.001))
