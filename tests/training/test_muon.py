"""Orthogonal steps for filters: by definition, against torch's Muon, through checkpoints and through a removal."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prunus import prune
from prunus.errors import ConfigError
from prunus.migration import migrate_optimizer
from prunus.models import build_model
from prunus.training import Recipe
from prunus.training.muon import Muon, orthogonal
from prunus.training.optimiser import build_optimiser
from tests.training.conftest import step_by_step

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]

RECIPE = Recipe(1, learning_rate=0.5, momentum=0.8, weight_decay=0.01, optimizer="muon")


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def give_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4), (64, 576)])
def test_singular_values_are_about_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, *shape) * torch.tensor([1e-6, 1e3])[:, None, None]
    found = orthogonal(matrices)
    assert found.shape == matrices.shape
    for one, before in zip(found, matrices, strict=True):
        u, values, v = torch.linalg.svd(before, full_matrices=False)
        turned = u.T @ one @ v.T  # diagonal, since the iteration leaves the singular vectors
        clear = values > 0.05 * values[0]
        assert bool((turned.diagonal()[clear] > 0.6).all() and (turned.diagonal() < 1.2).all())
        torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=2e-3, rtol=0)


def test_nothing_to_learn_is_no_step() -> None:
    assert torch.equal(orthogonal(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_only_filters_of_several_channels_take_orthogonal_steps() -> None:
    model = make_network()
    optimiser = build_optimiser(model, RECIPE)
    chosen = [group for group in optimiser.param_groups if group["orthogonal"]]
    assert [id(p) for group in chosen for p in group["params"]] == [id(model[0].weight), id(model[3].weight)]
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(model.parameters()))


def test_everything_else_has_sgd() -> None:
    model = make_network()
    other = copy.deepcopy(model)
    muon, sgd = build_optimiser(model, RECIPE), build_optimiser(other, dataclasses.replace(RECIPE, optimizer="sgd"))
    for _ in range(3):
        give_gradients(model)
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            its.grad = mine.grad
        muon.step()
        sgd.step()
    alike = {name for name, mine in model.named_parameters() if torch.equal(mine, other.get_parameter(name))}
    assert alike == dict(model.named_parameters()).keys() - {"0.weight", "3.weight"}


def test_steps_by_hand() -> None:
    """Two steps of a 4×8 filter bank, from the definition."""
    model = make_network()
    weight = model[3].weight
    optimiser = build_optimiser(model, RECIPE)
    expected = weight.detach().clone()
    momentum = torch.zeros(4, 8)
    for _ in range(2):
        give_gradients(model)
        gradient = weight.grad.flatten(1)  # type: ignore[union-attr]
        momentum = 0.8 * momentum + gradient
        step = orthogonal((gradient + 0.8 * momentum)[None])[0]
        expected = expected * (1 - 0.5 * 0.01 / 0.2) - 0.5 * 0.2 * step.view(4, 8, 1, 1)
        optimiser.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_a_step_is_that_of_torch() -> None:
    """On a matrix, torch's Muon goes the same way; it iterates in bfloat16, and its rate is that of the step."""
    torch.manual_seed(0)
    start, gradient = torch.randn(12, 6), torch.randn(12, 6)
    mine, its = (nn.Parameter(start.clone()) for _ in range(2))
    mine.grad, its.grad = gradient.clone(), gradient.clone()
    group = {"params": [mine], "orthogonal": True}
    Muon([group], lr=1.0, momentum=0.9).step()
    torch.optim.Muon([its], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    torch.testing.assert_close(mine - start, its - start, atol=2e-3, rtol=0.02)


def test_a_removed_channel_takes_its_momentum_along() -> None:
    model = build_model("resnet8")
    optimiser = build_optimiser(model, RECIPE)
    give_gradients(model)
    optimiser.step()
    result = prune(model, torch.randn(2, 3, 32, 32), criterion="random", pruning_ratio=0.5)
    migrated = migrate_optimizer(optimiser, model, result)
    assert isinstance(migrated, Muon)
    give_gradients(result.model)
    migrated.step()
    assert all(migrated.state[p]["momentum_buffer"].shape == p.shape for p in result.model.parameters())
    assert [group["orthogonal"] for group in migrated.param_groups] == [g["orthogonal"] for g in optimiser.param_groups]


def test_killed_at_every_step_it_ends_with_the_same_bits(train: Train, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, optimizer="muon")
    whole, history = train(recipe=recipe, checkpoint_dir=None)
    stops, (resumed, again) = step_by_step(lambda stopping: train(recipe=recipe, stopping=stopping))
    assert stops == 4 * 5 - 1  # the last step ends it
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer is 'adam', and must be one of sgd, muon"):
        Recipe(1, optimizer="adam")  # type: ignore[arg-type]
