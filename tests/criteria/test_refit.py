"""What the loss rises by when channels go one by one, against a search that solves each step anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.criteria.calibrated import IMAGES, double, layers_of
from tests.handmade import SIDE, Concat
from torch import Tensor, nn

import prunus
from prunus.criteria import CRITERIA, LayerValues
from prunus.errors import ConfigError
from prunus.graph.gradients import curvature
from prunus.graph.members import Members
from prunus.graph.trace import trace

HIDDEN = 5


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


def drawn(scores: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(scores))
    return torch.multinomial(scores.float().softmax(1), 1, generator=generator)[:, 0]


def seen_by_hand(model: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a layer's input, and the mean over images of the sum over positions of its output's squared gradient."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        out.retain_grad()
        seen.extend((args[0].detach(), out))

    handle = layer.register_forward_hook(note)
    scores = model(IMAGES)
    F.cross_entropy(scores, drawn(scores.detach()), reduction="sum").backward()
    handle.remove()
    gradient = seen[1].grad
    assert gradient is not None
    return seen[0], gradient.square().movedim(1, 0).flatten(1).sum(1) / len(IMAGES)


def searched(problems: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Return each channel's cost, when the least goes first, by solving for all that have gone after every step.

    A problem is a covariance, and the weights, (outputs, channels), each times the root of its output's curvature.
    """

    def error(gone: list[int]) -> float:
        total = 0.0
        for covariance, weights in problems:
            left = [channel for channel in range(len(covariance)) if channel not in gone]
            rest = covariance[gone][:, gone]
            if left:
                crossed = covariance[gone][:, left]
                rest = rest - crossed @ torch.linalg.solve(covariance[left][:, left], crossed.T)
            total += float((weights[:, gone] @ rest * weights[:, gone]).sum()) / 2
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


def problem(model: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Make the problem of a layer that reads the channels of `first`."""
    seen, bends = seen_by_hand(model, layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    rows = seen.movedim(1, 0).flatten(1)
    if isinstance(layer, nn.Linear):  # a channel has a column for every position
        rows, weight = seen.view(len(seen), HIDDEN, -1).movedim(1, 0).flatten(1), weight.view(6, HIDDEN, -1)
    covariance = torch.cov(rows, correction=0)
    covariance = covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(HIDDEN)
    weights = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
    return covariance, (weights * bends.sqrt()[:, None, None]).movedim(1, 2).flatten(0, 1)


@pytest.mark.parametrize("kind", READERS)
def test_costs_are_those_of_a_search(kind: str) -> None:
    make, features = READERS[kind]
    model = double(Read(make(), features))
    layer = next(module for module in reversed(list(model.reader.modules())))  # type: ignore[union-attr, arg-type]
    found = layers_of(model, "refit_loss", calibration=IMAGES)["first"].refit_loss
    assert found is not None
    wanted = searched([problem(model, layer)])
    assert min(wanted) < 0.5 * max(wanted)
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
        seen, bends = seen_by_hand(model, layer)  # type: ignore[arg-type]
        covariance = torch.cov(seen.movedim(1, 0).flatten(1), correction=0)
        weight = layer.weight.detach()  # type: ignore[union-attr, operator]
        for group in range(layer.groups):  # type: ignore[arg-type]
            size, outputs = 4 // layer.groups, 6 // layer.groups  # type: ignore[operator]
            at = slice(group * size, (group + 1) * size)
            own = (weight[group * outputs : (group + 1) * outputs].flatten(2)).movedim(1, 2)
            own = (own * bends[group * outputs : (group + 1) * outputs].sqrt()[:, None, None]).flatten(0, 1)
            whole, weights = torch.eye(4).double(), torch.zeros(len(own), 4).double()
            part = covariance[at, at]
            whole[at, at] = part + 1e-3 * part.diagonal().mean() * torch.eye(size)
            weights[:, at] = own
            problems.append((whole, weights))
    found = layers_of(model, "refit_loss", calibration=IMAGES)["first"].refit_loss
    assert found is not None
    np.testing.assert_allclose(found, searched(problems), rtol=1e-6)


def test_of_two_channels_alike_the_first_is_free() -> None:
    model = double(Read(nn.Conv2d(HIDDEN, 6, 3), 6))
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias):  # type: ignore[union-attr]
            tensor[3] = tensor[1]  # type: ignore[index, operator]
    found = layers_of(model, "refit_loss", calibration=IMAGES)["first"].refit_loss
    assert found is not None
    twins = sorted((float(found[1]), float(found[3])))
    assert twins[0] < 0.01 * twins[1] and twins[0] == float(found.min())


@pytest.mark.parametrize("kind", READERS)
def test_curvature_is_that_of_classes_drawn_by_the_network(kind: str) -> None:
    make, features = READERS[kind]
    model = double(Read(make(), features))
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    found = curvature(model, graph, Members(model), IMAGES)
    layers = {f"{name}.weight": module for name, module in model.named_modules() if hasattr(module, "weight")}
    assert set(found) == set(layers)
    for name, layer in layers.items():
        np.testing.assert_allclose(found[name] / len(IMAGES), seen_by_hand(model, layer)[1], rtol=1e-9)
    assert not any(parameter.grad is None for parameter in model.parameters())  # of seen_by_hand
    model.zero_grad()
    curvature(model, graph, Members(model), IMAGES)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_no_layer_reads_stays() -> None:
    numbers = torch.tensor([3.0, float("nan"), 1.5], dtype=torch.float64)
    layer = LayerValues("conv", torch.ones(3, 2), refit_loss=numbers)
    assert CRITERIA["refit_loss"](layer).tolist() == [3, 3, 1.5]


def test_a_group_that_lies_in_a_concatenation_is_scored() -> None:
    model = double(Concat())
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    scores = prunus.score(model, graph, "refit_loss", calibration=IMAGES)
    assert all(bool((one > 0).all()) and len(set(one.tolist())) > 1 for one in scores.values())


def test_what_gives_no_scores_is_refused() -> None:
    model = double(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)))
    graph = trace(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"class scores, \(N, classes\), but the network returns \(7, 2, \d+, \d+\)"):
        prunus.score(model, graph, "refit_loss", calibration=IMAGES)
    with pytest.raises(ConfigError, match="refit_loss needs refit_loss, which is measured on images"):
        prunus.score(model, graph, "refit_loss")
