"""Compensation: exact for constant channels, folded where there is room, and nothing invented."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.recovery.networks import difference, without
from tests.silenced import half_plan
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, SurgeryError
from prunus.recovery import RecoveryReport, compensate


class Pair(nn.Module):
    """Two convolutions: of the first, some channels are constant, since their weights are zero."""

    def __init__(self, norm: nn.Module | None, *, bias: bool = False, **options: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 6, 3, bias=bias, **options)
        self.norm = norm or nn.Identity()
        self.head = nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            self.first.weight[::2] = 0
            self.first.bias.copy_(torch.linspace(-1, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(x).relu())))


def both(model: nn.Module, x: Tensor, gone: list[int]) -> tuple[nn.Module, nn.Module, RecoveryReport]:
    """Remove channels of the layer `first`, and compensate: the pruned network, the compensated one, the report."""
    graph = prunus.trace(model, x)
    plan = without(graph, "first", gone)
    pruned = prunus.remove(model, graph, plan)
    return pruned, *compensate(model, pruned, graph, plan, x)


def norm(**options: bool) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(6, **options).double()
    if made.running_mean is not None:
        made.running_mean.uniform_(-1, 1)
        made.running_var.uniform_(0.5, 2)
    return made


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}])
@pytest.mark.parametrize("place", ["bias", "norm"])
def test_a_constant_channel_is_made_good_exactly(place: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = Pair(norm() if place == "norm" else None, bias=place == "bias", **options).double().eval()
    x = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    gone = [2, 6] if options.get("groups") else [2, 4, 6]
    pruned, made, report = both(model, x, gone)
    fresh = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    assert difference(pruned, model, fresh) > 1e-3
    assert difference(made, model, fresh) < 1e-14
    changed = "second.bias" if place == "bias" else "norm.running_mean"
    assert [(layer.name, layer.changed, layer.reason) for layer in report.layers] == [("second", (changed,), "")]


def test_the_mean_is_that_of_what_the_layer_sees() -> None:
    """By hand: relu(x), of mean 2/3 over two examples and three positions, meets kernel weights 1 and 2."""
    model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv1d(2, 1, 2), nn.Conv1d(1, 1, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[1.0]], [[5.0]]]))
        model[2].weight.copy_(torch.tensor([[[1.0, 2.0], [1.0, 1.0]]]))
        model[2].bias.fill_(10)
    x = torch.tensor([[[1.0, -5.0, 3.0]], [[-1.0, 0.0, -2.0]]], dtype=torch.float64)
    graph = prunus.trace(model, x)
    plan = without(graph, "0", [0])
    pruned = prunus.remove(model, graph, plan)
    made, _ = compensate(model, pruned, graph, plan, [x[:1], x[1:]])
    assert made[2].bias.item() == pytest.approx(10 + (1 + 2) * 2 / 3, abs=1e-12)


def test_nothing_is_invented() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    for behind, reason in (
        (None, "neither a bias nor a BatchNorm"),
        (nn.GroupNorm(2, 6), "neither a bias nor a BatchNorm"),
        (norm(track_running_stats=False), "takes the statistics of the batch"),
    ):
        pruned, made, report = both(Pair(behind).double().eval(), x, [2, 4])
        assert torch.equal(made(x), pruned(x))
        (left,) = report.left
        assert left.name == "second" and reason in left.reason and not report.changed


class Shared(nn.Module):
    """One convolution that runs twice, one BatchNorm behind two convolutions, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.left, self.right, self.norm = (
            nn.Conv2d(8, 4, 1, bias=False),
            nn.Conv2d(8, 4, 1, bias=False),
            nn.BatchNorm2d(4),
        )
        self.up = nn.ConvTranspose2d(8, 4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.twice(self.twice(self.first(x)))
        return self.norm(self.left(y)) + self.norm(self.right(y)), self.up(y)


def test_what_is_used_several_times_is_left_and_said() -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(2, 3, 9, 9)
    graph = prunus.trace(model, x)
    plan = half_plan(graph)
    pruned = prunus.remove(model, graph, plan)
    made, report = compensate(model, pruned, graph, plan, x)
    reasons = {layer.name: layer.reason for layer in report.left}
    assert "used 2 times" in reasons["twice"]
    assert "normalises other layers too" in reasons["left"] and "normalises other layers too" in reasons["right"]
    assert "transposed" in reasons["up"]
    assert not report.changed
    for found, expected in zip(made(x), pruned(x), strict=True):
        assert torch.equal(found, expected)


def test_a_linear_layer_behind_a_flatten() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    graph = prunus.trace(model, x)
    plan = without(graph, "0", [1])
    made, report = compensate(model, prunus.remove(model, graph, plan), graph, plan, x)
    assert report.changed[0].changed == ("2.bias",)
    assert difference(made, model, x) < 1e-14


class Functional(nn.Module):
    """No modules, only parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(4, 6, 3, 3))
        self.c, self.d = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(4))
        with torch.no_grad():
            self.a[2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(nn.functional.conv2d(x, self.a, self.c), self.b, self.d)


def test_functional_convolutions_are_seen() -> None:
    torch.manual_seed(0)
    model, x = Functional().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = prunus.trace(model, x)
    plan = without(graph, "a", [2])
    made, report = compensate(model, prunus.remove(model, graph, plan), graph, plan, x)
    assert report.changed[0].changed == ("d",)
    assert difference(made, model, x) < 1e-14


def test_arguments_modes_and_random_state_stay() -> None:
    torch.manual_seed(0)
    model = prunus.build_model("mobilenetv2").train()
    x = torch.randn(4, 3, 16, 16)
    graph = prunus.trace(model, x)
    plan = half_plan(graph)
    pruned = prunus.remove(model, graph, plan)
    pruned.eval()
    pruned.classifier.train()
    copies = [copy.deepcopy(network) for network in (model, pruned)]
    modes = [module.training for module in pruned.modules()]
    state, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    made, report = compensate(model, pruned, graph, plan, x)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy).all()
    for network, before in zip((model, pruned), copies, strict=True):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before.state_dict()[name]), name
    assert [module.training for module in made.modules()] == modes
    changed = {name for layer in report.changed for name in layer.changed}
    assert changed
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, pruned.state_dict()[name]) == (name not in changed), name


def test_what_does_not_belong_together_is_refused() -> None:
    model, x = Pair(None, bias=True), torch.randn(2, 3, 9, 9)
    graph = prunus.trace(model, x)
    plan = without(graph, "first", [0])
    with pytest.raises(SurgeryError, match=r"first.weight is \(8, 3, 3, 3\) there and should be \(7, 3, 3, 3\)"):
        compensate(model, model, graph, plan, x)
    with pytest.raises(ConfigError, match="gone through only once"):
        compensate(model, prunus.remove(model, graph, plan), graph, plan, iter([x]))
