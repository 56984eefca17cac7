from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.training import Recipe
from prunus.training.optimiser import build_optimiser, learning_rate


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    return [learning_rate(recipe, step, steps_per_epoch) for step in range(recipe.epochs * steps_per_epoch)]


def test_one_cycle() -> None:
    recipe = Recipe(4, learning_rate=0.8, schedule="one-cycle", warmup_epochs=2)
    assert rates(recipe, 2) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2])


def test_cosine() -> None:
    recipe = Recipe(3, learning_rate=2.0, schedule="cosine", warmup_epochs=1)
    # 1 + cos of 0, 45, 90 and 135 degrees after the warm-up
    expected = [1.0, 2.0, 2.0, 1.7071067811865475, 1.0, 0.2928932188134524]
    assert rates(recipe, 2) == pytest.approx(expected)


def test_constant() -> None:
    assert rates(Recipe(3, learning_rate=0.3, schedule="constant", warmup_epochs=1.5), 2) == pytest.approx(
        [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]
    )


def test_multi_step() -> None:
    recipe = Recipe(4, learning_rate=0.4, schedule="multi-step", warmup_epochs=0.5)
    assert rates(recipe, 2) == pytest.approx([0.4, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_no_warmup_starts_at_the_peak() -> None:
    assert rates(Recipe(2, learning_rate=1.0, schedule="one-cycle"), 2) == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "multi-step", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.999])
def test_every_step_has_a_rate_between_0_and_the_peak(schedule: str, warmup: float) -> None:
    recipe = Recipe(2, learning_rate=0.4, schedule=schedule, warmup_epochs=warmup)  # type: ignore[arg-type]
    for steps_per_epoch in (1, 3, 10):
        assert all(0 < rate <= 0.4 for rate in rates(recipe, steps_per_epoch))


def make_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Flatten(), nn.Linear(2, 2))


def test_decay_is_for_filters_and_matrices_alone() -> None:
    model = make_network()
    optimiser = build_optimiser(model, Recipe(1, weight_decay=0.01))
    decayed = {
        name
        for name, parameter in model.named_parameters()
        for group in optimiser.param_groups
        if group["weight_decay"] and any(parameter is p for p in group["params"])
    }
    assert decayed == {"0.weight", "4.weight"}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(model.parameters()))


def test_one_step_by_hand() -> None:
    model = make_network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = build_optimiser(model, Recipe(1, learning_rate=0.5, momentum=0.8, weight_decay=0.01))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    # Nesterov's first step is (1 + momentum) times the gradient, which here is the decay alone.
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.01 * 1.8 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_frozen_parameters_and_no_momentum() -> None:
    model = make_network()
    model[0].requires_grad_(False)  # type: ignore[index]
    optimiser = build_optimiser(model, Recipe(1, momentum=0.0))
    assert all(p.requires_grad for group in optimiser.param_groups for p in group["params"])
    assert not optimiser.param_groups[0]["nesterov"]
