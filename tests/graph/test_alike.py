"""Training mode is run where it does something else to channels, and only there."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.silenced import half_plan, randomise
from torch import Tensor, nn

import prunus
from prunus.graph.recording import Runner
from prunus.graph.sizes import shrunk


class OwnNorm(nn.BatchNorm2d):
    """A BatchNorm whose forward reads the flag in code that is not torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


class Doubled(nn.Module):
    """What changes in training mode: the channels are seen a second time, by a layer of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.other = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.other(x) if self.training else x


class Net(nn.Module):
    def __init__(self, middle: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3, padding=1), middle(8), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.first(x))).mean((2, 3)))


class Asking(Net):
    """A network that asks for the flag of one of its modules while another is running."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.middle(y) if self.middle.training else self.middle(y) + y
        return self.head(self.last(y).mean((2, 3)))


def trained(model: nn.Module) -> bool:
    """Say whether a trace ran the model in training mode."""
    recording = Runner((torch.randn(2, 3, 8, 8),)).record(model)
    return bool(recording.steps[True])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Net(nn.BatchNorm2d), False),
        (Net(lambda c: nn.Sequential(nn.Dropout2d(0.5), nn.ReLU())), False),
        (Net(lambda c: nn.Sequential(OwnNorm(c), nn.Conv2d(c, c, 1), OwnNorm(c))), False),
        (Net(Doubled), True),
        (Net(lambda c: nn.Sequential(OwnNorm(c), Doubled(c))), True),
        (Asking(nn.BatchNorm2d), True),
    ],
    ids=["BatchNorm", "dropout", "own norms", "doubled", "norm and doubled", "flag of another"],
)
def test_training_mode_runs_where_it_must(model: nn.Module, expected: bool) -> None:
    assert trained(model) == expected
    assert "training" not in vars(nn.Module), "the flag is an attribute as before"
    assert all(module.training for module in model.modules())


def test_what_runs_in_training_mode_only_is_pruned_along() -> None:
    model, x = randomise(Net(Doubled)), torch.randn(2, 3, 8, 8)
    graph = prunus.trace(model, x)
    assert ("middle.other.weight", 1) in graph.group("first").tensors
    pruned = prunus.remove(model, graph, half_plan(graph))
    assert pruned.train()(x).shape == (2, 4)
    assert pruned.middle.other.weight.shape == (4, 4, 1, 1)


def test_own_norms_are_pruned_as_torch_s_are() -> None:
    own, torch_s = (Net(norm) for norm in (OwnNorm, nn.BatchNorm2d))
    x = torch.randn(2, 3, 8, 8)
    groups = [[(g.name, g.size, g.tensors) for g in prunus.trace(model, x).groups] for model in (own, torch_s)]
    assert groups[0] == groups[1]


def test_traces_in_threads_do_not_disturb_one_another() -> None:
    found: list[int] = []

    def work(middle: Callable[[int], nn.Module]) -> None:
        for _ in range(5):
            found.append(prunus.trace(Net(middle), torch.randn(2, 3, 8, 8)).channel_count)

    threads = [threading.Thread(target=work, args=(OwnNorm,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [14] * 10
    assert "training" not in vars(nn.Module)


def test_a_smaller_network_runs_in_the_modes_of_the_wide_one() -> None:
    model, x = Net(OwnNorm), torch.randn(2, 3, 8, 8)
    graph = prunus.trace(model, x)
    small = shrunk(model, graph, half_plan(graph).keep_array(graph), graph.settings)
    assert not graph.runner.record(small, *graph.hints).steps[True]
