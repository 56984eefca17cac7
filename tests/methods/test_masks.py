"""Soft masks: silent is silent, and a whispering channel still learns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.silenced import random_keep, randomise, relative_error
from torch import nn

from prunus.graph.channels import ChannelGraph, Keep
from prunus.graph.trace import trace
from prunus.methods import mask_channels
from prunus.methods.masks import WHISPER
from prunus.models import build_model
from prunus.plan import plan_from_keep
from prunus.surgery import remove


class Plain(nn.Module):
    """Convolutions without BatchNorm, one of them transposed, and a BatchNorm without γ and β."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.conv2 = nn.Conv2d(5, 7, 3, bias=False)
        self.norm = nn.BatchNorm2d(7)
        self.fc = nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.up(torch.relu(self.conv1(x))))
        logits: torch.Tensor = self.fc(torch.relu(self.norm(self.conv2(x))).mean((2, 3)))
        return logits


def some_keep(graph: ChannelGraph) -> Keep:
    return random_keep(graph, np.random.default_rng(4))


@pytest.mark.parametrize("name", ["resnet8", "resnet8_pad", "vgg16_bn", "mobilenetv2", "plain"])
def test_masked_equals_removed(name: str) -> None:
    model = randomise(Plain() if name == "plain" else build_model(name)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    keep = some_keep(graph)
    masked = copy.deepcopy(model)
    mask_channels(masked, graph, keep)
    small = remove(model, graph, plan_from_keep(graph, keep))
    with torch.no_grad():
        assert relative_error(masked(x), model(x)) > 1e-3, "this mask changes nothing, so the test could not fail"
        assert relative_error(small(x), masked(x)) < 1e-12
        mask_channels(model, graph, keep, WHISPER)
        assert relative_error(model(x), masked(x)) < 1e-4


def test_a_whispering_channel_keeps_its_gradient_and_a_silent_one_has_none() -> None:
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def gradient(factor: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = build_model("resnet8")
        graph = trace(model, x)
        keep = graph.keep_all()
        keep[graph.group("layer1.0.conv1").channels[:4]] = False
        mask_channels(model, graph, keep, factor)
        model(x).square().sum().backward()
        found = model.get_parameter("layer1.0.bn1.weight").grad
        assert found is not None
        return found[:4].abs()

    assert (gradient(0.0) == 0).all()  # ReLU passes nothing at zero: such a channel could never come back
    assert (gradient(WHISPER) > 0.1 * gradient(1.0)).all()


def test_shared_parameters_are_masked_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.mix = nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.mix(torch.relu(self.mix(torch.relu(self.conv(x)))))
            logits: torch.Tensor = self.fc(x.mean((2, 3)))
            return logits

    model = Twice()
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    keep = graph.keep_all()
    keep[graph.groups[0].channels[0]] = False
    before = model.mix.weight.detach().clone()
    mask_channels(model, graph, keep, 0.5)
    assert torch.equal(model.mix.weight[0], before[0] * 0.5)
    assert torch.equal(model.mix.weight[1:], before[1:])
