"""Simulated 8-bit integers: the same numbers as the file's, and gradients that reach the network's own weights."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tests.deploy.exported import pruned, randomise
from torch import Tensor, nn

from prunus.deploy import FileInfo, Int8Simulation, quantize
from prunus.deploy.capturing import capture
from prunus.deploy.comparing import random_samples
from prunus.deploy.formats.onnx import exported_program
from prunus.deploy.int8_scheme import Int8Scheme
from prunus.deploy.int8_simulation import round_weight
from prunus.errors import ModelError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SHAPE = (3, 12, 12)
INFO = FileInfo(format="", input_shape=SHAPE)


class EveryKind(nn.Module):
    """A residual sum, a concatenation, depthwise and transposed layers, a norm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4))
        self.late = nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, 5)
        self.register_buffer("shift", torch.linspace(-0.5, 0.5, 8).view(1, 8, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        first = self.stem(images)
        second = torch.relu(first + self.point(self.depthwise(first)) + self.shift)
        small = nn.functional.max_pool2d(self.up(second), 2)
        return self.fc(torch.relu(self.late(torch.cat([first, second, small], 1))).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return randomise(EveryKind())


def images(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_the_simulation_gives_what_the_file_gives(network: nn.Module) -> None:
    quantized = quantize(network, INFO, random_samples(SHAPE, 64))
    simulation = quantized.simulation(copy.deepcopy(network))
    # Everything but the logits is rounded: the images, what layers give, sums and the concatenation.
    assert set(simulation.grids) == set(quantized.scheme.activations) >= {"images", "cat", "mean"}
    assert len(quantized.scheme.weights) >= 5
    with torch.no_grad():
        whole, rounded = network(images(200)), simulation(images(200))
    found = torch.from_numpy(quantized.open()(images(200).numpy()))
    lost = (found - whole).square().mean().sqrt()
    assert lost > 1e-3
    # A value in the middle of two steps may go either way, and all that is computed of it: 0.11. Without the rounding
    # of the weights it would be 1.0, without that of the images 0.27, without that of the shift 0.48.
    assert set(quantized.scheme.constants) == {"shift"}
    assert (rounded - found).square().mean().sqrt() < 0.15 * lost


def test_without_rounding_it_is_the_network(network: nn.Module) -> None:
    ours, theirs = copy.deepcopy(network), copy.deepcopy(network)
    captured = capture(ours, SHAPE)
    simulation = Int8Simulation(ours, exported_program(captured), captured, Int8Scheme({}, {})).train()
    batch = images(16)
    loss, wanted = simulation(batch).square().sum(), theirs(batch).square().sum()
    assert torch.allclose(loss, wanted, rtol=1e-4)
    torch.autograd.backward([loss, wanted])
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None, name
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-3, atol=1e-3 * float(other.grad.abs().max())), name
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, network.get_buffer(name)), name


def test_gradients_pass_through_the_rounding(network: nn.Module) -> None:
    trained = copy.deepcopy(network)
    simulation = quantize(trained, INFO, random_samples(SHAPE, 64)).simulation(trained)
    assert simulation.network is trained
    optimiser = torch.optim.SGD(simulation.parameters(), lr=0.02)
    labels = torch.arange(64) % 5
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(simulation(images(64)), labels)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    chance = math.log(5)
    assert losses[-1] - chance < 0.6 * (losses[0] - chance)
    assert all(not torch.equal(a, b) for a, b in zip(trained.parameters(), network.parameters(), strict=True))


def test_ranges_that_are_known_are_not_measured(network: nn.Module) -> None:
    first = quantize(network, INFO, random_samples(SHAPE, 64))
    grids = {name: (2 * grid.scale, grid.zero_point) for name, grid in first.scheme.activations.items()}
    second = quantize(network, INFO, random_samples(SHAPE, 8), grids)
    for name, grid in second.scheme.activations.items():
        assert np.isclose(grid.scale, grids[name][0]) and grid.zero_point == grids[name][1]
    simulation = second.simulation(network)
    assert simulation.grids["cat"][0] == pytest.approx(grids["cat"][0])


def test_weights_are_rounded_by_channel() -> None:
    weight = torch.tensor([[64.0, 1.4, -2.6], [0.64, -0.014, 0.0], [0.0, 0.0, 0.0]])
    wanted = torch.tensor([[64.0, 1.0, -3.0], [0.64, -0.01, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(round_weight(weight, 0), wanted)
    assert torch.allclose(round_weight(weight.T, 1), wanted.T)
    assert torch.equal(round_weight(weight, None)[1], torch.tensor([1.0, 0.0, 0.0]))


class OneAtATime(nn.Module):
    """A network whose code says another thing for one image than for several."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 5)

    def forward(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.fc(batch.reshape(1, 12)) if len(batch) == 1 else torch.cat([self(x[None]) for x in batch])
        return logits


def test_a_network_for_one_image_at_a_time_cannot_be_trained_so() -> None:
    network, info = OneAtATime(), INFO.model_copy(update={"input_shape": (3, 2, 2)})
    quantized = quantize(network, info, random_samples((3, 2, 2), 4))
    with pytest.raises(ModelError, match=r"code fixes the number of images.*type --int8-epochs 0"):
        quantized.simulation(network)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet20", "mobilenetv2_half", "shufflenetv2", "densenet40", "googlenet", "squeezenet"]
)
def test_every_kind_of_network_is_simulated(name: str) -> None:
    shape = (3, 32, 32)
    network = pruned(name)
    quantized = quantize(network, INFO.model_copy(update={"input_shape": shape}), random_samples(shape, 64))
    simulation = quantized.simulation(copy.deepcopy(network))
    missing = {found for found in quantized.scheme.activations if found not in simulation.grids}
    assert all("split" in found for found in missing)  # parts of what is on a grid already
    batch = random_samples(shape, 200).images
    with torch.no_grad():
        whole, rounded = network(batch), simulation(batch)
    found = torch.from_numpy(quantized.open()(batch.numpy()))
    lost = (found - whole).square().mean().sqrt()
    assert (rounded - found).square().mean().sqrt() < 1.1 * lost
    assert (rounded.argmax(1) == found.argmax(1)).float().mean() > 0.8
    torch.autograd.backward(simulation(batch[:8]).sum())
    assert all(parameter.grad is not None for parameter in simulation.network.parameters())
