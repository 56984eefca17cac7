"""Sparse training's steps, against numbers by hand and against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunus.criteria import LayerValues
from prunus.criteria.channel_sparsity import channel_sparsity
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.methods.penalties import PENALTIES, apply_penalty, penalty_value, soft_degree, sparsity_degree_at


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


def test_the_soft_degree_is_one_at_zero_and_one_half_at_the_threshold() -> None:
    filters = torch.tensor([[0.0, 0.5], [-0.5, 1.5]], dtype=torch.float64)  # RMS² = 2.75 / 4
    t = 0.5 / (2.75 / 4) ** 0.5  # τ = 0.5
    expected = torch.tensor([(1 + 0.5) / 2, (0.5 + 0.1) / 2], dtype=torch.float64)  # 1.5 is 3 τ: 1 / (1 + 9)
    torch.testing.assert_close(soft_degree(filters, t), expected)
    assert soft_degree(torch.zeros(2, 3), 0.1).tolist() == [1, 1]


def test_the_soft_degree_becomes_the_weight_degree_as_it_is_sharpened() -> None:
    filters = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hard = 1 - channel_sparsity(LayerValues("layer", filters), t=0.5, lam=0.0)
    soft = [soft_degree(filters, 0.5, sharpness) for sharpness in (1.0, 10.0, 2000.0)]
    assert (soft[1] - hard).abs().max() < (soft[0] - hard).abs().max()
    torch.testing.assert_close(soft[2], hard, atol=1e-3, rtol=0)


def test_the_step_of_the_sparsity_degree_is_its_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(6, 1, 1)).double()
    graph = trace(model, torch.zeros(1, 2, 5, 5, dtype=torch.float64))
    penalty = sparsity_degree_at(0.3)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    torch.autograd.backward(penalty.value(dict(model.named_parameters()), graph))
    gradients = {name: tensor.grad for name, tensor in model.named_parameters()}
    apply_penalty(model, graph, penalty, 1e-3)
    for name, tensor in model.named_parameters():
        gradient = gradients[name]
        step = torch.zeros_like(tensor) if gradient is None else gradient
        torch.testing.assert_close(before[name] - tensor.detach(), 1e-3 * step, atol=1e-12, rtol=1e-6)
    assert gradients["0.weight"] is not None and gradients["1.weight"] is not None
    assert gradients["2.weight"] is None, "the output's filter may not go"


def test_sparse_channels_become_sparser_and_dense_ones_stay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 4), bias=False), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.02, 0.0, -0.02]]).view(2, 1, 1, 4))
    graph = trace(model, torch.zeros(1, 1, 3, 6))
    for _ in range(50):
        apply_penalty(model, graph, PENALTIES["sparsity_degree"], 1e-3)
    dense, sparse = model[0].weight.detach().flatten(1)
    assert dense.tolist() == pytest.approx([1.0] * 4, abs=1e-3)
    assert sparse.abs()[1:].max() < 1e-4  # from 0.02
    apply_penalty(model, graph, PENALTIES["sparsity_degree"], 1e9)
    assert (model[0].weight >= 0).all(), "no weight goes past zero"


def test_values_of_the_penalties() -> None:
    model, graph = network()
    assert penalty_value(model, graph, PENALTIES["group_lasso"]) == pytest.approx(5 + 0.5)
    assert penalty_value(model, graph, PENALTIES["bn_scale"]) == pytest.approx(2.3)
    squared = 0.1**2 * 25.25 / 4  # τ², of 9 + 16 + 0.09 + 0.16
    degrees = [sum(1 / (1 + w**2 / squared) for w in pair) / 2 for pair in ((3, 4), (0.3, 0.4))]
    expected = sum(1 - degree**2 for degree in degrees)
    assert penalty_value(model, graph, PENALTIES["sparsity_degree"]) == pytest.approx(expected)
