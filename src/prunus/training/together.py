"""What rank 0 hands on to the processes that train with it: weights, momentum, and a network of other shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from prunus.training.epoch import Parts
from prunus.training.hook import Hook, Reshaper, StepHook


def prepare_epoch(
    parts: Parts, hook: Hook, epoch: int, first: nn.Module, build: Callable[[nn.Module], Optimizer]
) -> tuple[nn.Module, Optimizer] | None:
    """Let rank 0's hook prepare an epoch, and the others follow; the network and optimiser to go on with, if others.

    Args:
        parts: what the last epoch was trained with.
        hook: of this training, on every process.
        epoch: which one, from 1.
        first: the network that the training began with; the others rebuild from it what rank 0 has.
        build: makes an optimiser.
    """
    team = parts.team

    def decide() -> tuple[nn.Module, Optimizer] | None:
        hook.epoch_start(parts.model, epoch)
        return hook.replace(parts.model, parts.optimiser) if isinstance(hook, Reshaper) else None

    replaced = team.lead(decide)
    if team.size == 1:
        return replaced
    state = team.tell(hook.state() if replaced else None)
    if team.leads:
        return replaced
    if isinstance(hook, StepHook):
        hook.epoch_start(parts.model, epoch)
    if state is None or not isinstance(hook, Reshaper):
        return None
    hook.load_state(state)
    network = hook.rebuild(first).to(team.device)
    return network, build(network)


def share_state(parts: Parts) -> None:
    """Give all processes rank 0's weights, buffers, average and momentum."""
    team = parts.team
    if team.size == 1:
        return
    team.share(parts.model.state_dict().values())
    if parts.average is not None:
        team.share(parts.average.state_dict().values())
    named = dict(parts.model.named_parameters())
    state = parts.optimiser.state
    having = [name for name, value in named.items() if state.get(value, {}).get("momentum_buffer") is not None]
    for name in team.tell(having):
        value = named[name]
        if state[value].get("momentum_buffer") is None:
            state[value]["momentum_buffer"] = torch.zeros_like(value)
        team.share([state[value]["momentum_buffer"]])
