"""What the walk through a model finds is what torch's own methods say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus.graph.members import Members, modules_of, tensor_at


class Shy(nn.Module):
    """Has a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("scratch", torch.ones(3), persistent=False)


class Forgetful(nn.Linear):
    """Saves its bias alone."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "bias"] = self.bias


def hooked() -> nn.Module:
    def forget(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        del state[prefix + "0.bias"]

    model = nn.Sequential(nn.Linear(2, 2))
    model.register_state_dict_post_hook(forget)
    return model


def shared() -> nn.Module:
    shy = Shy()
    return nn.ModuleDict({"one": shy, "other": shy, "norm": nn.BatchNorm2d(3), "empty": nn.Sequential()})


MODELS = {
    "shared, a buffer that is not saved": shared,
    "a way of its own": lambda: nn.Sequential(Forgetful(2, 3)),
    "a hook": hooked,
}


@pytest.mark.parametrize("name", MODELS)
def test_members_are_what_torch_says(name: str) -> None:
    model = MODELS[name]()
    members = Members(model)
    parameters, buffers = (f(remove_duplicate=False) for f in (model.named_parameters, model.named_buffers))
    assert [(n, id(t)) for n, t in members.tensors] == [(n, id(t)) for n, t in (*parameters, *buffers)]
    assert members.parameters == {n for n, _ in model.named_parameters()}
    names = {n for n, _ in members.tensors}
    assert members.saved & names == model.state_dict().keys() & names
    assert list(members.modules.items()) == list(model.named_modules())
    assert modules_of(model) == list(model.modules())


def test_a_tensor_is_found_by_any_of_its_names() -> None:
    model = shared()
    assert tensor_at(model, "other.weight") is tensor_at(model, "one.weight") is model["one"].weight
    assert tensor_at(model, "norm.running_mean") is model["norm"].running_mean
    assert tensor_at(model, "norm.nothing") is None
    assert tensor_at(model, "nobody.weight") is None
