"""The modules, parameters and buffers of a model by their names, and copies of its tensors to run it with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Members:
    """The modules of a model, each once, and its parameters and buffers by all their names; walked through once."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = {}
        parameters: list[tuple[str, Tensor]] = []
        buffers: list[tuple[str, Tensor]] = []
        known: set[int] = set()
        for name, module in model.named_modules(remove_duplicate=False):
            if id(module) not in known:
                known.add(id(module))
                self.modules[name] = module
            prefix = f"{name}." if name else ""
            for found, held in ((parameters, module._parameters), (buffers, module._buffers)):
                found += [(prefix + key, tensor) for key, tensor in held.items() if tensor is not None]
        self.tensors = [*parameters, *buffers]
        first = {id(tensor): name for name, tensor in reversed(parameters)}
        self.parameters = frozenset(first.values())


def meta_copies(members: Members) -> dict[int, Tensor]:
    """Return an empty meta tensor for every parameter and buffer, by its id."""
    # Whether one requires a gradient counts: products with more than two axes are folded by it.
    return {
        id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta", requires_grad=tensor.requires_grad)
        for _, tensor in members.tensors
    }


def real_copies(members: Members) -> dict[int, Tensor]:
    """Return, by id, every parameter itself and a copy of every buffer, since training mode writes into these."""
    return {id(tensor): tensor if isinstance(tensor, nn.Parameter) else tensor.clone() for _, tensor in members.tensors}


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer by all its names."""
    return Members(model).tensors
