"""Layers that are reached from the layer before see what they see in a pass of the whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graph.strategy import Drawn, networks
from tests.recovery.networks import same_tensors
from tests.silenced import half_plan
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunus
from prunus.recovery import reconstruct, rerunning
from prunus.recovery.capturing import Captured, capture_all, only
from prunus.recovery.rerunning import Rerun
from prunus.recovery.watching import LayerCall, run_watched

PLENTY = 2**30


class Counted(TorchDispatchMode):
    """Counts convolutions and matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
        return func(*args, **(kwargs or {}))


def capture(model: nn.Module, x: Tensor, weight: str) -> Captured:
    """Capture a layer in a pass of the whole network."""
    return only(weight, lambda heard: capture_all(model, x, [weight], heard))


def layers_of(model: nn.Module, x: Tensor) -> list[str]:
    """Return the weights of the layers in the order in which they run, but those that are used several times."""
    calls: list[LayerCall] = []
    uses = run_watched(model, x, calls.append)
    return [call.weight for call in calls if uses[call.weight] == 1]


def same(one: Captured, other: Captured) -> bool:
    """Say whether two captures hold the same numbers, bit for bit."""
    pairs = [(one.call.x, other.call.x), (one.call.out, other.call.out)]
    pairs += [(a, b) for a, b in ((one.beside, other.beside), (one.scale, other.scale)) if a is not None]
    alike = [(a is None) == (b is None) for a, b in ((one.beside, other.beside), (one.scale, other.scale))]
    return all(alike) and all(b is not None and torch.equal(a, b) for a, b in pairs)


def agrees(model: nn.Module, batches: list[Tensor], room: int, skip: int = 1) -> None:
    """Capture layer after layer, changing each once it has been seen, and compare with passes of the whole network."""
    model.eval()
    again, tensors = Rerun(model, room), dict(model.named_parameters())
    for weight in layers_of(model, batches[0])[::skip]:
        for number, batch in enumerate(batches):
            found = again.capture(number, batch, weight)
            assert same(found, capture(model, batch, weight)), weight
        with torch.no_grad():
            tensors[weight].mul_(1.01)


@given(networks(), st.sampled_from([0, 20_000, PLENTY]), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_random_networks(drawn: Drawn, room: int, skip: int) -> None:
    x = drawn.inputs()
    agrees(drawn.build(), [x, x.flip(0), torch.cat([x, x + 1])], room, skip)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "shufflenetv2", "squeezenet"])
def test_networks_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    agrees(prunus.build_model(name), [torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)], PLENTY, skip=3)


class Overwriting(nn.Module):
    """Changes in place what the second layer has read, before anything reads what the second layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y)
        y.mul_(2)
        return self.third(z + y)


def test_what_is_changed_in_place_is_not_kept() -> None:
    torch.manual_seed(0)
    agrees(Overwriting(), [torch.randn(2, 3, 8, 8)], PLENTY)


class Deciding(nn.Module):
    """Adds a number, and takes a path, that `look` reads from what the first layer gives."""

    def __init__(self, look: Callable[[Tensor], float]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        number = self.look(y)
        y = self.second(y + number)
        return self.third(y if number > 0 else y.flip(1))


LOOKS: dict[str, Callable[[Tensor], float]] = {
    "item": lambda y: y.mean().item(),
    "tolist": lambda y: y.mean((0, 2, 3)).tolist()[0],
    "numpy": lambda y: float(y.numpy().mean()),
    "array": lambda y: float(np.asarray(y).mean()),
    "count": lambda y: float(len(y[y > 0.1])) - y.numel() / 2,
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_network_that_looks_at_numbers_runs_as_a_whole(name: str) -> None:
    torch.manual_seed(0)
    agrees(Deciding(LOOKS[name]), [torch.randn(2, 3, 8, 8) + shift for shift in (-2, 2)], PLENTY)


def test_each_layer_runs_about_once_where_there_is_room() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(20)))
    x, size = torch.randn(3, 4, 8, 8), 3 * 4 * 8 * 8 * 4
    counts = {}
    for room in (0, size, PLENTY):
        again = Rerun(model, room)
        with Counted() as counted:
            for weight in layers_of(model, x):
                for number in range(2):
                    again.capture(number, x, weight)
        counts[room] = counted.count - 2 * 20  # to find the layers, and to write down the operations
        assert again.room <= room
    assert counts[PLENTY] == 2 * (1 + 2 * 19), "each layer when it is captured, and when the next one is"
    assert counts[0] == 2 * sum(range(1, 21))
    assert counts[size] == (counts[0] + counts[PLENTY]) // 2, "there is room for one of the two batches"


def test_layers_that_are_asked_for_again_are_found() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(2, 4)
    again = Rerun(model, PLENTY)
    for weight in ("2.weight", "0.weight", "3.weight", "2.weight"):
        assert same(again.capture(0, x, weight), capture(model, x, weight))
    with pytest.raises(LookupError):
        again.capture(0, x, "1.weight")


def test_reconstruction_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = prunus.build_model("resnet20").eval()
    x = F.interpolate(torch.randn(24, 3, 4, 4), 16, mode="bicubic")
    graph = prunus.trace(model, x[:2])
    plan = half_plan(graph)
    pruned = prunus.remove(model, graph, plan)

    def made() -> tuple[nn.Module, int]:
        with Counted() as counted:
            network, _ = reconstruct(model, pruned, graph, plan, [x[:16], x[16:]], max_positions=300)
        return network, counted.count

    quick, few = made()
    monkeypatch.setattr(rerunning, "_record", lambda *_: None)
    plain, many = made()
    assert same_tensors(quick, plain)
    assert few < 0.4 * many, (few, many)
