"""The optimiser and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from prunus.training.muon import Muon, has_filters
from prunus.training.recipe import Recipe


def build_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over the trainable parameters; its learning rate is set before each step.

    Both have Nesterov momentum. Weight decay is for matrices and filters. Vectors (BatchNorm scales and shifts, biases)
    have none: pulling them towards 0 limits what the layer can say without keeping it from overfitting.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    muon = recipe.optimizer == "muon"
    filters = [p for p in trainable if muon and has_filters(p)]
    matrices = [p for p in trainable if p.ndim > 1 and not (muon and has_filters(p))]
    groups = [
        {"params": filters, "weight_decay": recipe.weight_decay, "orthogonal": True},
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if muon:
        return Muon(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Compute the learning rate of step 0, 1, …, epochs · steps_per_epoch − 1.

    The warm-up's last step is the first at the peak; no step has a rate of 0.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.learning_rate * ((step + 1) / warmup)
    remaining = (total - step) / (total - warmup)  # 1 after the warm-up, one step short of 0 at the end
    match recipe.schedule:
        case "one-cycle":
            return recipe.learning_rate * remaining
        case "cosine":
            return recipe.learning_rate * (1 - math.cos(math.pi * remaining)) / 2
        case "multi-step":
            done = step / total
            return recipe.learning_rate * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
        case "constant":
            return recipe.learning_rate


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all parameter groups."""
    for group in optimiser.param_groups:
        group["lr"] = rate
