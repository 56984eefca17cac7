"""Sparse training's proximal steps, against numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.methods.penalties import PENALTIES, apply_penalty


def network() -> tuple[nn.Sequential, ChannelGraph]:
    """Two prunable filters with a BatchNorm, and one that gives the output and may not go."""
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 2), bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]).view(2, 1, 1, 2))
        model[1].weight.copy_(torch.tensor([2.0, -0.3]))
        model[2].weight.copy_(torch.tensor([6.0, 8.0]).view(1, 2, 1, 1))
    return model, trace(model, torch.zeros(1, 1, 3, 4))


def test_group_lasso_shortens_filters_and_makes_short_ones_zero() -> None:
    model, graph = network()
    apply_penalty(model, graph, PENALTIES["group_lasso"], 1.0)
    expected = torch.tensor([[2.4, 3.2], [0.0, 0.0]])  # 5 − 1 = 4, so 4 / 5 of it; 0.5 is shorter than 1
    torch.testing.assert_close(model[0].weight.detach().flatten(1), expected)
    assert model[2].weight.flatten().tolist() == [6.0, 8.0], "the output's filter may not go"
    assert model[1].weight.tolist() == pytest.approx([2.0, -0.3])


def test_bn_scale_draws_gammas_towards_zero() -> None:
    model, graph = network()
    apply_penalty(model, graph, PENALTIES["bn_scale"], 0.5)
    torch.testing.assert_close(model[1].weight.detach(), torch.tensor([1.5, 0.0]))
    assert model[0].weight.flatten().tolist() == pytest.approx([3.0, 4.0, 0.3, 0.4])


def test_the_filters_of_a_grouped_transposed_convolution_lie_along_its_second_axis() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.Conv2d(6, 1, 1))
    graph = trace(model, torch.zeros(1, 1, 3, 3))
    before = model[1].weight.detach().clone()
    apply_penalty(model, graph, PENALTIES["group_lasso"], 0.1)
    for group in range(2):
        for column in range(3):
            old = before[2 * group : 2 * group + 2, column]
            new = model[1].weight.detach()[2 * group : 2 * group + 2, column]
            torch.testing.assert_close(new, old * (1 - 0.1 / old.norm()))


@pytest.mark.parametrize("name", PENALTIES)
def test_nothing_happens_without_a_threshold(name: str) -> None:
    model, graph = network()
    before: dict[str, Tensor] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    apply_penalty(model, graph, PENALTIES[name], 0.0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
