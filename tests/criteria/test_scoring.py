"""Reading a network's layers, making them compare, and joining the members of a coupled channel."""

from __future__ import annotations

import math

import pytest
import torch
from tests.handmade import HANDMADE, SIDE, Concat, Row, Sum, concat_graph, row_graph, sum_graph
from tests.silenced import randomise
from torch import Tensor, nn

from prunus.criteria import CRITERIA, LayerValues, read_layers, score, score_each
from prunus.criteria.registry import Normalize
from prunus.errors import ConfigError, ModelError, TraceError
from prunus.graph.trace import trace
from prunus.models import build_model


def first_weight(layer: LayerValues) -> Tensor:
    """A criterion that is easy to follow: the first weight of each filter."""
    return layer.weight.flatten(1)[:, 0]


def model_sum() -> nn.Module:
    """conv1's first weights are 1 to 4, conv2's 10, 20, 30, 60."""
    model = Sum()
    with torch.no_grad():
        model.conv1.weight[:, 0, 0, 0] = torch.tensor([1.0, 2, 3, 4])
        model.conv2.weight[:, 0, 0, 0] = torch.tensor([10.0, 20, 30, 60])
    return model


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("mean", [5.5, 11, 16.5, 32]),
        ("sum", [11, 22, 33, 64]),
        ("max", [10, 20, 30, 60]),
        ("min", [1, 2, 3, 4]),
        ("first", [1, 2, 3, 4]),
    ],
)
def test_members_are_joined(reduce: str, expected: list[float]) -> None:
    assert score(model_sum(), sum_graph(), first_weight, reduce=reduce, normalize="none")["conv1"].tolist() == expected


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("mean", [(1 / 2.5 + 10 / 30) / 2, (2 / 2.5 + 20 / 30) / 2, (3 / 2.5 + 1) / 2, (4 / 2.5 + 2) / 2]),
        ("max", [(0.25 + 1 / 6) / 2, (0.5 + 1 / 3) / 2, (0.75 + 0.5) / 2, 1]),
        (None, [(1 / 2.5 + 10 / 30) / 2, (2 / 2.5 + 20 / 30) / 2, (3 / 2.5 + 1) / 2, (4 / 2.5 + 2) / 2]),
    ],
)
def test_layers_are_made_to_compare(normalize: str | None, expected: list[float]) -> None:
    found = score(model_sum(), sum_graph(), first_weight, normalize=normalize)
    assert found["conv1"].tolist() == pytest.approx(expected)
    assert found["conv1"].dtype == torch.float64


def test_several_normalisations_are_of_one_measurement() -> None:
    looked_at = []

    def counted(layer: LayerValues) -> Tensor:
        looked_at.append(layer.name)
        return first_weight(layer)

    ways: tuple[Normalize, ...] = ("mean", "max", "size", "cost", "gaussian", "none")
    found = score_each(model_sum(), sum_graph(), counted, ways)
    assert sorted(looked_at) == sorted(set(looked_at)), "each layer is scored once"
    alone = {way: score(model_sum(), sum_graph(), first_weight, normalize=way) for way in ways}
    for way in ways:
        assert {name: values.tolist() for name, values in found[way].items()} == {
            name: values.tolist() for name, values in alone[way].items()
        }
    assert len({tuple(scores["conv1"].tolist()) for scores in found.values()}) == len(ways)


def test_defaults() -> None:
    model, graph = randomise(Row()), row_graph()
    scale = score(model, graph, lambda layer: torch.full((len(layer.weight),), 3.0), normalize="none")
    assert scale["conv1"].tolist() == [3] * 6
    raw = {layer.name: CRITERIA["channel_sparsity"](v, lam=0.0, t=0.5) for layer, v in read_layers(model, graph)}
    expected = {name: values / values.mean() for name, values in raw.items()}
    sparsity = score(model, graph, "channel_sparsity", lam=0.0, t=0.5)
    torch.testing.assert_close(sparsity["conv1"], (expected["conv1"] + expected["depth"]) / 2)  # depthwise goes with it
    torch.testing.assert_close(sparsity["conv2"], expected["conv2"])


def test_random_draws_evenly_however_many_members_a_channel_has() -> None:
    model, graph = Sum(), sum_graph()
    assert score(model, graph, "random", seed=3)["conv1"].tolist() == pytest.approx(
        CRITERIA["random"](LayerValues("conv1", model.conv1.weight), seed=3).tolist()
    )
    assert not torch.equal(score(model, graph, "random")["conv1"], score(model, graph, "random", seed=1)["conv1"])


def test_concatenated_groups_have_their_own_scores() -> None:
    model = Concat()
    scores = score(model, concat_graph(), "l1_norm", normalize="none")
    assert {name: len(values) for name, values in scores.items()} == {"left": 3, "right": 2, "join": 4}
    for name, values in scores.items():
        expected = getattr(model, name).weight.detach().double().abs().sum((1, 2, 3))
        torch.testing.assert_close(values, expected)


def test_layers_are_read_with_their_batchnorm() -> None:
    model = randomise(Row())
    layers = {layer.name: values for layer, values in read_layers(model, row_graph())}
    assert sorted(layers) == ["conv1", "conv2", "depth"]  # fc produces nothing that can go
    norm = layers["conv1"].norm
    assert norm is not None and norm.var is not None and norm.eps == 1e-5
    torch.testing.assert_close(norm.gamma, model.bn1.weight.detach().double())
    torch.testing.assert_close(norm.var, model.bn1.running_var.double())
    assert layers["conv2"].norm is None and layers["conv2"].bias is not None
    torch.testing.assert_close(layers["conv2"].bias, model.conv2.bias.detach().double())
    assert layers["depth"].weight.shape == (6, 1, 3, 3) and layers["depth"].zero_fraction is None


class Unusual(nn.Module):
    """A transposed convolution, a BatchNorm without parameters, one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.conv = nn.Conv2d(4, 5, 1)
        self.untracked = nn.BatchNorm2d(5, track_running_stats=False)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.untracked(self.conv(torch.relu(self.plain(self.up(x))))).mean((2, 3)))


def test_unusual_layers() -> None:
    model = Unusual()
    graph = trace(model, torch.randn(2, 3, SIDE, SIDE))
    layers = {layer.name: values for layer, values in read_layers(model, graph)}
    torch.testing.assert_close(layers["up"].weight, model.up.weight.detach().double().transpose(0, 1))
    plain, untracked = layers["up"].norm, layers["conv"].norm
    assert plain is not None and plain.gamma.tolist() == [1] * 4 and plain.beta.tolist() == [0] * 4
    assert untracked is not None and untracked.mean is None and untracked.var is None
    for name in ("fused_conv_bn", "bn_scale", "channel_sparsity"):
        assert [len(values) for values in score(model, graph, name).values()] == [4, 5]


@pytest.mark.parametrize("name", sorted(HANDMADE))
def test_a_traced_graph_gives_the_same_scores(name: str) -> None:
    make, graph_of = HANDMADE[name]
    model = randomise(make())
    traced = trace(model, torch.randn(1, 3, SIDE, SIDE))
    for criterion in ("fused_conv_bn", "channel_sparsity", "random"):
        by_hand, found = score(model, graph_of(), criterion), score(model, traced, criterion)
        assert sorted(by_hand) == sorted(found)
        assert all(torch.equal(by_hand[group], found[group]) for group in by_hand)


def test_activation_degree_measures_zeros_on_the_calibration_images() -> None:
    """BatchNorm's β decides how often ReLU gives zero: always for channel 0, never for channel 1."""
    model = Row()
    with torch.no_grad():
        model.bn1.bias[:2] = torch.tensor([-100.0, 100.0])
    images = torch.randn(8, 3, SIDE, SIDE)
    options = {"degree": "activation", "lam": 0.0, "normalize": "none"}
    found = score(model, row_graph(), "channel_sparsity", calibration=images, **options)["conv1"]
    assert found[:2].tolist() == [0, 1]
    assert ((found[2:] > 0.2) & (found[2:] < 0.8)).all()
    in_batches = score(model, row_graph(), "channel_sparsity", calibration=iter(images.split(4)), **options)["conv1"]
    torch.testing.assert_close(in_batches, found)


def test_a_channel_without_non_linearity_counts_as_never_zero() -> None:
    """Concat's first two convolutions meet no ReLU."""
    model, images = Concat(), torch.randn(4, 3, SIDE, SIDE)
    values = {layer.name: v.zero_fraction for layer, v in read_layers(model, concat_graph(), images)}
    assert values["left"] is not None and all(math.isnan(v) for v in values["left"].tolist())
    options = {"degree": "activation", "lam": 0.0, "normalize": "none"}
    found = score(model, concat_graph(), "channel_sparsity", calibration=images, **options)
    assert found["left"].tolist() == [1, 1, 1]
    assert not torch.equal(found["join"], torch.ones(4))


def test_scoring_leaves_the_model_alone_even_if_the_criterion_writes() -> None:
    def vandal(layer: LayerValues) -> Tensor:
        layer.weight.zero_()
        return torch.arange(len(layer.weight))

    model = Row().double().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert score(model, row_graph(), vandal, normalize="none")["conv1"].tolist() == [0, 1, 2, 3, 4, 5]
    score(
        model, row_graph(), "channel_sparsity", degree="activation", calibration=torch.randn(2, 3, SIDE, SIDE).double()
    )
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_layers_of_zeros_do_not_divide_by_zero() -> None:
    model = Row()
    torch.nn.init.zeros_(model.conv2.weight)
    assert score(model, row_graph(), "l1_norm")["conv2"].tolist() == [0] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "l3_norm"}, "no criterion 'l3_norm'; did you mean 'l"),
        ({"criterion": lambda layer: layer.weight}, r"returned shape \(6, 3, 3, 3\) for layer 'conv1'"),
        ({"criterion": lambda layer: 1.0}, r"returned float for layer 'conv1'; it should .* shape \(6,\)"),
        ({"criterion": lambda layer: torch.full((len(layer.weight),), math.nan)}, "not all finite"),
        ({"criterion": "l1_norm", "reduce": "median"}, "reduce is 'median'; it is one of mean, max, min, sum, first"),
        ({"criterion": "l1_norm", "normalize": "sum"}, "normalize is 'sum'"),
        ({"criterion": "channel_sparsity", "degree": "activation"}, "pass calibration=images"),
        ({"criterion": "bn_scale"}, "'depth' has none"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score(Row(), row_graph(), **arguments)


def test_another_network_and_no_batches() -> None:
    with pytest.raises(ModelError, match=r"conv1.weight has shape \(6, 3, 3, 3\) there and is \(4, 3, 3, 3\) here"):
        score(Sum(), row_graph())
    with pytest.raises(TraceError, match="at least one batch"):
        score(Row(), row_graph(), calibration=[])


@pytest.mark.parametrize("name", ["resnet8_pad", "mobilenetv2", "shufflenetv2"])
def test_the_zoo_is_scored_throughout(name: str) -> None:
    model = build_model(name)
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))]
    for criterion in CRITERIA:
        scores = score(model, graph, criterion, calibration=batches)
        assert {group.name: group.size for group in graph.groups} == {key: len(v) for key, v in scores.items()}
        assert all(torch.isfinite(values).all() for values in scores.values())


def test_a_function_of_ones_own_may_keep_and_change_what_it_gets() -> None:
    model, held = randomise(Row()), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def criterion(layer: LayerValues) -> Tensor:
        held.append((layer, layer.weight.clone()))
        return layer.weight.flatten(1)[:, 0].abs_()

    score(model, row_graph(), criterion)
    assert all(torch.equal(layer.weight.flatten(1)[:, 1:], copy.flatten(1)[:, 1:]) for layer, copy in held)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_a_criterion_by_name_says_the_same_as_the_function(name: str) -> None:
    """By name the weights of all layers go through one piece of memory."""
    model = Unusual()
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {"normalize": "mean", "reduce": "mean", "calibration": [(images, torch.tensor([0, 1]))]}
    by_name, by_function = score(model, graph, name, **options), score(model, graph, CRITERIA[name], **options)
    assert by_name and all(torch.equal(by_name[key], by_function[key]) for key in by_function)
