"""Several steps after one another, in the order in which they help each other."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.plan import PruningPlan
from prunus.recovery.compensation import compensate
from prunus.recovery.recalibration import recalibrate
from prunus.recovery.reconstruction import reconstruct
from prunus.recovery.report import RecoveryReport

STEPS = ("compensate", "reconstruct", "recalibrate")
"""In the order in which they are carried out, whatever the order in which they are asked for.

Weights are refitted from where constants have brought them, and statistics are those of the weights as they are then.
"""

Repair = Literal["recalibrate", "reconstruct"]
"""The step that comes before a candidate is judged."""


@dataclass(frozen=True)
class Recovered:
    """A step's name, the network that it gave, and, but for recalibrate, what was done to which layer."""

    step: str
    model: nn.Module
    report: RecoveryReport | None


def in_order(steps: str | Iterable[str]) -> tuple[str, ...]:
    """Return the steps, each once, in the order of STEPS.

    Raises:
        ConfigError: one is not in STEPS; the message gives the nearest.
    """
    asked = {steps} if isinstance(steps, str) else set(steps)
    for unknown in sorted(asked - set(STEPS)):
        near = difflib.get_close_matches(unknown, STEPS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no recovery step {unknown!r}.{hint} There are: {', '.join(STEPS)}.")
    return tuple(step for step in STEPS if step in asked)


def recover(
    model: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Tensor | Iterable[Tensor],
    steps: str | Iterable[str],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Recovered]:
    """Carry out steps one after the other, and give the network after each; none of them needs labels or gradients.

    Args:
        model: the original. Neither network is changed.
        pruned: what `prunus.remove` made of it.
        graph: the original's channel graph.
        plan: which channels stayed.
        batches: inputs (N, C, H, W) as the networks take them, or an iterable of such that can be gone through again.
        steps: some of STEPS.
        seed: for the output positions that `reconstruct` draws.
        progress: is told how many layers `reconstruct` has done, and of how many.

    Raises:
        ConfigError: an unknown step, or what the steps themselves raise.
    """
    for step in in_order(steps):
        report = None
        if step == "compensate":
            pruned, report = compensate(model, pruned, graph, plan, batches)
        elif step == "reconstruct":
            pruned, report = reconstruct(model, pruned, graph, plan, batches, seed=seed, progress=progress)
        else:
            pruned = recalibrate(pruned, batches)
        yield Recovered(step, pruned, report)


def check_repair(how: str) -> None:
    """Raise a ConfigError unless it is one of Repair."""
    if how not in get_args(Repair):
        raise ConfigError(f"recover is {how!r}; it is one of {', '.join(get_args(Repair))}.")


def repaired(
    model: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Tensor | Iterable[Tensor],
    how: Repair,
    **options: Any,
) -> nn.Module:
    """Return what a candidate is judged by: the pruned network after one step; `options` are those of `reconstruct`."""
    if how == "recalibrate":
        return recalibrate(pruned, batches)
    return reconstruct(model, pruned, graph, plan, batches, **options)[0]


def even_batches(images: Tensor, size: int) -> list[Tensor]:
    """Cut images into batches of at most `size`, as equal as can be: `recalibrate` counts every batch the same."""
    return list(torch.tensor_split(images, max(1, -(-len(images) // size))))
