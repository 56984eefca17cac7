"""The methods that benchmarks/accuracy.py compares: how each chooses the channels of a trained network that stay."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.cost import count_cost
from prunus.criteria import ON_IMAGES, needed
from prunus.errors import ConfigError
from prunus.methods import Choice

Kind = Literal["one-shot", "dynamic", "torch-pruning", "scratch", "dense"]

_ABLATED = r"(?s)(.*?)(?:-(without|with)-(.*))?"  # takes any name
_BATCH = 64  # images that a criterion measures at once
_HALVINGS = 16  # of Torch-Pruning's pruning ratio: finer than one channel of these networks


@dataclass(frozen=True)
class Method:
    """How one row of the tables comes about.

    `criterion` is one of Prunus, and for Torch-Pruning "group" or "magnitude". `recalibrates` and `reconstructs` say
    which recovery steps the network may take before it is trained; `trials` are the networks that a search of widths
    measures on a part of the held-out images, from the global ranking's and the local scope's on. `epochs` tells
    whether the rest of the training is as long as the fine-tune, as the dense network's training, or nothing; `ema` is
    the decay of the average of its weights, 0 for none.
    """

    label: str
    kind: Kind
    criterion: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    scope: Literal["global", "local"] = "global"
    recalibrates: bool = True
    reconstructs: bool = True
    trials: int = 0
    epochs: Literal["finetune", "dense", "none"] = "finetune"
    ema: float = 0.0


METHODS: dict[str, Method] = {
    "A": Method("A: channel sparsity", "one-shot", "channel_sparsity"),
    "B": Method("B: fused norm, dynamic", "dynamic", "fused_conv_bn"),
    "B-energy": Method("B: delivered energy, one-shot", "one-shot", "delivered_energy", {"variance": "calibrated"}),
    "B-widths": Method(
        "B: delivered energy, widths searched", "one-shot", "delivered_energy", {"variance": "calibrated"}, trials=40
    ),
    "B-energy-dynamic": Method(
        "B: delivered energy, dynamic", "dynamic", "delivered_energy", {"variance": "calibrated"}
    ),
    "refit-dynamic": Method("refit error, dynamic", "dynamic", "refit_error"),
    "refit": Method("refit error, one-shot", "one-shot", "refit_error"),
    "refit-widths": Method("refit error, widths searched", "one-shot", "refit_error", trials=40),
    "l1_norm": Method("l1_norm", "one-shot", "l1_norm"),
    "random": Method("random", "one-shot", "random"),
    "tp_magnitude": Method("Torch-Pruning, magnitude", "torch-pruning", "magnitude", reconstructs=False),
    "tp_group": Method("Torch-Pruning, GroupNorm", "torch-pruning", "group", reconstructs=False),
    "scratch": Method("from scratch, A's widths, epochs of the fine-tune", "scratch", "channel_sparsity"),
    "scratch_e": Method("Scratch-E, A's widths", "scratch", "channel_sparsity", epochs="dense"),
    "dense": Method("dense", "dense", epochs="none"),
    "dense_longer": Method("dense, the same extra epochs", "dense"),
}
"""The rows by name; the last two have no budget."""

PARTS = ("criterion", "allocation", "recalibration", "reconstruction")
"""What an ablation leaves out, one at a time; distillation is left out by the cell without it."""

EXTRAS: dict[str, dict[str, Any]] = {"ema": {"ema": 0.99}}  # looks back 100 of the fine-tune's 1,400 steps
"""What an ablation adds to a method, one at a time."""


def find_method(name: str) -> Method:
    """Return a method by its name; "A-without-allocation" is A with that part left out, "A-with-ema" has more.

    Raises:
        ConfigError: there is no such method or part.
    """
    base, how, part = re.fullmatch(_ABLATED, name).groups()
    method = METHODS.get(base)
    if method is None:
        raise ConfigError(f"there is no method {name!r}. There are: {', '.join(METHODS)}.")
    if how is None:
        return method
    changes: dict[tuple[str, str], dict[str, Any]] = {
        ("without", "criterion"): {"criterion": "random", "options": {}},
        ("without", "allocation"): {"trials": 0} if method.trials else {"scope": "local"},
        ("without", "recalibration"): {"recalibrates": False},
        ("without", "reconstruction"): {"reconstructs": False},
        **{("with", extra): fields for extra, fields in EXTRAS.items()},
    }
    if (how, part) not in changes:
        raise ConfigError(
            f"there is no method {name!r}. Left out of {base} can be: {', '.join(PARTS)}; added: {', '.join(EXTRAS)}."
        )
    return replace(method, label=f"{method.label}, {how} {part}", **changes[how, part])


def choice_of(method: Method, images: Tensor, seed: int) -> Choice:
    """Return how a Prunus method chooses channels; `images` (N, C, H, W) are for criteria that measure on some."""
    measures = needed(method.criterion, method.options, has_images=True) & ON_IMAGES
    return Choice(
        method.criterion,
        method.options,
        scope=method.scope,
        seed=seed,
        calibration=images.split(_BATCH) if measures else None,
    )


def prune_with_torch_pruning(model: nn.Module, which: str, macs: int, example: Tensor) -> tuple[nn.Module, float]:
    """Return what Torch-Pruning makes of a network within a number of MACs, and the pruning ratio for it.

    Its ranking is global and the classifier's outputs stay, as its README has it; the ratio is found by bisection, and
    of all networks tried the one with the most MACs within the budget is taken. ``"group"`` is GroupNormPruner with
    its norm over all coupled layers (p = 2), without sparse training; ``"magnitude"`` is MagnitudePruner with p = 1:
    with p = 2, its default, the two choose the same channels.

    Raises:
        ConfigError: Torch-Pruning is not installed, or no ratio is within the budget.
    """
    best: tuple[int, float, nn.Module] | None = None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        small = _torch_pruned(model, which, ratio, example)
        found = count_cost(small, example).macs
        if found <= macs:
            high = ratio
            best = max(best or (0, ratio, small), (found, ratio, small), key=lambda one: one[0])
        else:
            low = ratio
    if best is None:
        raise ConfigError(f"Torch-Pruning reaches {macs:,} MACs with no pruning ratio")
    return best[2], best[1]


def _torch_pruned(model: nn.Module, which: str, ratio: float, example: Tensor) -> nn.Module:
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise ConfigError("Torch-Pruning is not installed; type: pip install 'prunus[bench]'") from error

    small = copy.deepcopy(model)
    pruner, importance = {
        "group": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance(p=2)),
        "magnitude": (tp.pruner.MagnitudePruner, tp.importance.MagnitudeImportance(p=1)),
    }[which]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what Torch-Pruning calls
        pruner(
            small,
            example,
            importance=importance,
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[module for module in small.modules() if isinstance(module, nn.Linear)],
            in_channel_groups={},  # its defaults are shared between all pruners, and fill up
            out_channel_groups={},
        ).step()
    for parameter in small.parameters():
        parameter.grad = None
    return small.to(torch.float32).eval()
