"""How far outputs move when channels go one by one, against a search that solves each step anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.criteria.calibrated import IMAGES, double, layers_of
from tests.handmade import SIDE, Concat
from torch import Tensor, nn

import prunus
from prunus.criteria import CRITERIA, LayerValues
from prunus.errors import ConfigError
from prunus.graph.gradients import sensitivity
from prunus.graph.members import Members
from prunus.graph.trace import trace

HIDDEN = 5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Read(nn.Module):
    """Channels that one layer reads, and what makes class scores of its output."""

    def __init__(self, reader: nn.Module, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, HIDDEN, 3)
        self.reader = reader
        self.fc = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reader(torch.relu(self.first(x)))
        return self.fc(torch.relu(x.flatten(2).mean(2) if x.dim() > 2 else x))


LEFT = SIDE - 2
READERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convolution": (lambda: nn.Conv2d(HIDDEN, 6, 3), 6),
    "without overlap": (lambda: nn.Conv2d(HIDDEN, 6, 1, stride=2, bias=False), 6),
    "transposed": (lambda: nn.ConvTranspose2d(HIDDEN, 6, 2), 6),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(HIDDEN * LEFT**2, 6)), 6),
}


def seen_by_hand(model: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a layer's input, (N, C, positions), and the means over images of its output's squared gradients.

    The squares are (2, C_out): of the sum over positions, and the sum over positions of them.
    """
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        out.retain_grad()
        seen.extend((args[0].detach(), out))

    handle = layer.register_forward_hook(note)
    out = model(IMAGES)
    noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (out * noise.double()).sum().backward()
    handle.remove()
    gradient = seen[1].grad
    assert gradient is not None
    gradient = gradient.reshape(*gradient.shape[:2], -1)
    squares = torch.stack([gradient.sum(2).square().sum(0), gradient.square().sum((0, 2))]) / len(IMAGES)
    values = seen[0].flatten(2) if seen[0].dim() > 2 else seen[0]
    return values, squares


def searched(problems: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Return each channel's cost, when the least goes first, by solving for all that have gone after every step.

    A problem is a covariance, and the weights, (outputs, channels), each times the root of its output's sensitivity.
    """

    def error(gone: list[int]) -> float:
        total = 0.0
        for covariance, weights in problems:
            left = [channel for channel in range(len(covariance)) if channel not in gone]
            rest = covariance[gone][:, gone]
            if left:
                crossed = covariance[gone][:, left]
                rest = rest - crossed @ torch.linalg.solve(covariance[left][:, left], crossed.T)
            total += float((weights[:, gone] @ rest * weights[:, gone]).sum())
        return total

    gone: list[int] = []
    costs = [0.0] * len(problems[0][0])
    top = 0.0
    while len(gone) < len(costs):
        rises = {c: error([*gone, c]) - error(gone) for c in range(len(costs)) if c not in gone}
        channel = min(rises, key=lambda c: rises[c])
        top = costs[channel] = max(top, rises[channel])
        gone.append(channel)
    return costs


def problems_of(seen: Tensor, squares: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Make the two problems of a layer or a group of it; `weight` is (outputs, channels, positions)."""
    means = seen.mean(2, keepdim=True)
    rest = (seen - means).transpose(0, 1).flatten(1)
    between, within = torch.cov(means[:, :, 0].T, correction=0), rest @ rest.T / rest.shape[1]
    problems = []
    for covariance, weights in (
        (between, weight.sum(2) * squares[0].sqrt()[:, None]),
        (within, (weight * squares[1].sqrt()[:, None, None]).movedim(1, 2).flatten(0, 1)),
    ):
        held = covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
        problems.append((held, weights))
    return problems


@pytest.mark.parametrize("kind", READERS)
def test_errors_are_those_of_a_search(kind: str) -> None:
    make, features = READERS[kind]
    model = double(Read(make(), features))
    layer = next(module for module in reversed(list(model.reader.modules())))  # type: ignore[union-attr, arg-type]
    found = layers_of(model, "refit_error", calibration=IMAGES)["first"].refit_error
    weight = layer.weight.detach()  # type: ignore[union-attr, operator]
    if kind == "linear":  # a channel has a column for every position
        weight = weight.view(6, HIDDEN, -1)
    weight = (weight.transpose(0, 1) if kind == "transposed" else weight).flatten(2)
    seen, squares = seen_by_hand(model, layer)
    wanted = searched(problems_of(seen.reshape(len(seen), HIDDEN, -1), squares, weight))
    assert found is not None and min(wanted) < 0.9 * max(wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


class Two(nn.Module):
    """Channels that two layers read; the second reads nothing else, and each group of it two or three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.one = nn.Conv2d(4, 6, 3, padding=1)
        self.other = nn.Conv2d(4, 6, 1, groups=2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.fc(torch.relu(self.one(x) + self.other(x)).mean((2, 3)))


def test_all_readers_are_added_up_and_groups_explain_their_own_alone() -> None:
    model = double(Two())
    problems = []
    for layer in (model.one, model.other):
        assert isinstance(layer, nn.Conv2d)
        seen, squares = seen_by_hand(model, layer)
        size, outputs = 4 // layer.groups, 6 // layer.groups
        for group in range(layer.groups):
            at, rows = slice(group * size, (group + 1) * size), slice(group * outputs, (group + 1) * outputs)
            own = layer.weight.detach()[rows].flatten(2)
            for covariance, weights in problems_of(seen[:, at], squares[:, rows], own):
                whole, placed = torch.eye(4).double(), torch.zeros(len(weights), 4).double()
                whole[at, at], placed[:, at] = covariance, weights
                problems.append((whole, placed))
    found = layers_of(model, "refit_error", calibration=IMAGES)["first"].refit_error
    assert found is not None
    np.testing.assert_allclose(found, searched(problems), rtol=1e-6)


def test_of_two_channels_alike_the_first_is_free() -> None:
    model = double(Read(nn.Conv2d(HIDDEN, 6, 3), 6))
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias):  # type: ignore[union-attr]
            tensor[3] = tensor[1]  # type: ignore[index, operator]
    found = layers_of(model, "refit_error", calibration=IMAGES)["first"].refit_error
    assert found is not None
    twins = sorted((float(found[1]), float(found[3])))
    assert twins[0] < 0.01 * twins[1] and twins[0] == float(found.min())


@pytest.mark.parametrize("kind", READERS)
def test_sensitivity_is_that_of_the_outputs_and_leaves_the_network_alone(kind: str) -> None:
    make, features = READERS[kind]
    model = double(Read(make(), features))
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    found = sensitivity(model, graph, Members(model), IMAGES, torch.Generator().manual_seed(0))
    assert all(parameter.grad is None for parameter in model.parameters())
    layers = {f"{name}.weight": module for name, module in model.named_modules() if hasattr(module, "weight")}
    assert set(found) == set(layers)
    for name in ("reader.weight" if kind != "linear" else "reader.1.weight", "fc.weight"):
        model.zero_grad()
        values = seen_by_hand(model, layers[name])[1]
        np.testing.assert_allclose(found[name] / len(IMAGES), values, rtol=1e-9)


def test_what_no_layer_reads_stays() -> None:
    numbers = torch.tensor([3.0, float("nan"), 1.5], dtype=torch.float64)
    layer = LayerValues("conv", torch.ones(3, 2), refit_error=numbers)
    assert CRITERIA["refit_error"](layer).tolist() == [3, 3, 1.5]


def test_a_group_that_lies_in_a_concatenation_is_scored() -> None:
    model = double(Concat())
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    scores = prunus.score(model, graph, "refit_error", calibration=IMAGES)
    assert all(bool((one > 0).all()) and len(set(one.tolist())) > 1 for one in scores.values())


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.one(x)
        return x, self.two(x)


def test_what_is_not_one_tensor_is_refused() -> None:
    model = double(Pair())
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"a tensor of numbers, but this one returns tuple; wrap it"):
        prunus.score(model, graph, "refit_error", calibration=IMAGES)
    with pytest.raises(ConfigError, match="refit_error needs refit_error, which is measured on images"):
        prunus.score(model, graph, "refit_error")


class Silent(nn.Module):
    """Records no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_a_network_without_gradients_is_refused() -> None:
    model = double(Silent())
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    with pytest.raises(ConfigError, match="records no gradients; does its forward pass run under"):
        prunus.score(model, graph, "refit_error", calibration=IMAGES)


class Words(nn.Module):
    """Takes numbers of words, which have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.hidden, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.hidden(self.words(x).mean(1))))


def test_inputs_need_no_gradient() -> None:
    words = torch.randint(7, (20, 4))
    model = Words().eval()
    scores = prunus.score(model, trace(model, words[:2]), "refit_error", calibration=words)
    assert any(len(set(one.tolist())) > 1 for one in scores.values())
