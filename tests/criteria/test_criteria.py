"""Every criterion against numbers worked out by hand, and against what must hold for any weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunus.criteria import CRITERIA, ConsumerValues, LayerValues, NormValues, get_criterion
from prunus.errors import ConfigError


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def example() -> LayerValues:
    """Three filters of four weights, RMS² = (25 + 4 + 169) / 12 = 16.5, RMS = 4.06; norms 5, 2, 13."""
    weight = torch.tensor([[3.0, 4, 0, 0], [1, 1, -1, 1], [0, -12, 5, 0]], dtype=torch.float64).reshape(3, 1, 2, 2)
    norm = NormValues(
        gamma=values(2, -1, 0.5), beta=values(0, 1, -1), mean=values(1, 2, 3), var=values(3, 0, 15), eps=1.0
    )
    return LayerValues("conv", weight, values(0, 1, 2), norm, values(0.25, math.nan, 1))


NORMS = values(5, 2, 13)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("l1_norm", {}, values(7, 4, 17)),
        ("l2_norm", {}, NORMS),
        ("bn_scale", {}, values(2, 1, 0.5)),
        # a = 2/√4, −1/√1, 0.5/√16
        ("fused_conv_bn", {}, NORMS * values(1, 1, 0.125)),
        ("fused_conv_bn", {"norm": 1}, values(7, 4, 17) * values(1, 1, 0.125)),
        # b̂ = 0 + 1·(0 − 1), 1 − 1·(1 − 2), −1 + 0.125·(2 − 3)
        ("fused_conv_bn", {"constant": True}, NORMS * values(1, 1, 0.125) + values(1, 2, 1.125)),
        # |w| ≤ 0.25 · 4.06 = 1.02: 2, 4, 2 of 4
        ("channel_sparsity", {"t": 0.25, "lam": 0.0}, values(0.5, 0, 0.5)),
        ("channel_sparsity", {"t": 0.25, "lam": 1.0}, (values(0.5, 0, 0.5) + NORMS / 13) / 2),
        ("channel_sparsity", {"t": 0.25, "lam": 3.0}, (values(0.5, 0, 0.5) + 3 * NORMS / 13) / 4),
        ("channel_sparsity", {}, (values(0.5, 1, 0.5) + NORMS / 13) / 2),  # t = 0.1: |w| ≤ 0.41
        # (√4 − 7/5) / (√4 − 1), (2 − 4/2) / 1, (2 − 17/13) / 1
        ("channel_sparsity", {"degree": "hoyer", "lam": 0.0}, 1 - values(0.6, 0, 9 / 13)),
        ("channel_sparsity", {"degree": "activation", "lam": 0.0}, values(0.75, 1, 0)),  # NaN: nothing makes it zero
    ],
)
def test_by_hand(name: str, options: dict[str, object], expected: Tensor) -> None:
    torch.testing.assert_close(get_criterion(name, **options)(example()), expected)


def test_without_a_batchnorm() -> None:
    bare = dataclasses.replace(example(), norm=None)
    torch.testing.assert_close(CRITERIA["fused_conv_bn"](bare), NORMS)
    torch.testing.assert_close(CRITERIA["fused_conv_bn"](bare, constant=True), NORMS + values(0, 1, 2))
    with pytest.raises(ConfigError, match="bn_scale needs a BatchNorm right after every layer, and 'conv' has none"):
        CRITERIA["bn_scale"](bare)
    untracked = dataclasses.replace(example(), norm=NormValues(values(2, 2, 2), values(0, 0, 0), None, None, 1e-5))
    torch.testing.assert_close(CRITERIA["fused_conv_bn"](untracked), NORMS)
    torch.testing.assert_close(CRITERIA["bn_scale"](untracked), values(2, 2, 2))


def test_filters_of_zeros_and_of_one_weight() -> None:
    zeros = LayerValues("dead", torch.zeros(2, 3, 1, 1, dtype=torch.float64))
    for degree in ("weight", "hoyer"):
        assert CRITERIA["channel_sparsity"](zeros, degree=degree).tolist() == [0, 0]
    single = LayerValues("scalar", values(0, 2).reshape(2, 1))
    assert CRITERIA["channel_sparsity"](single, degree="hoyer").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("channel_sparsity", {"degree": "weights"}, "no degree 'weights'; it is one of weight, activation, hoyer"),
        ("channel_sparsity", {"lam": -1.0}, "lam is -1.0; both must be finite and at least 0"),
        ("channel_sparsity", {"t": math.nan}, "t is nan"),
        ("fused_conv_bn", {"norm": 3}, "norm is 3; it is 1 or 2"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CRITERIA[name](example(), **options)


def test_activation_needs_a_measurement() -> None:
    with pytest.raises(ConfigError, match="pass calibration=images"):
        CRITERIA["channel_sparsity"](dataclasses.replace(example(), zero_fraction=None), degree="activation")


def test_random_is_the_same_for_the_same_seed_and_layer_only() -> None:
    def draw(name: str, seed: int) -> list[float]:
        return CRITERIA["random"](LayerValues(name, torch.zeros(50, 1)), seed=seed).tolist()

    torch.manual_seed(1)
    first = draw("a", 0)
    state = torch.random.get_rng_state()
    assert draw("a", 0) == first and first[:3] == pytest.approx([0.55552, 0.61375, 0.13739], abs=1e-5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert draw("a", 1) != first and draw("b", 0) != first
    assert 0 <= min(first) < 0.2 and 0.8 < max(first) < 1


# What must hold for any layer

ALL_OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("channel_sparsity", {"degree": "weight", "t": 0.7}),
    ("channel_sparsity", {"degree": "hoyer", "lam": 0.3}),
    ("channel_sparsity", {"degree": "activation"}),
    ("fused_conv_bn", {}),
    ("fused_conv_bn", {"norm": 1, "constant": True}),
    ("l1_norm", {}),
    ("l2_norm", {}),
    ("bn_scale", {}),
    ("fpgm", {}),
    ("group_norm", {}),
    ("apoz", {}),
    ("hrank", {}),
    ("taylor", {}),
    ("delivered_energy", {}),
    ("delivered_energy", {"variance": "data-free"}),
    ("refit_error", {}),
]


def test_what_must_hold_is_tested_of_every_criterion() -> None:
    """All but the control, which has one number a place, not a channel."""
    assert {name for name, _ in ALL_OPTIONS} == set(CRITERIA) - {"random"}


@st.composite
def layers(draw: st.DrawFn) -> LayerValues:
    seed = draw(st.integers(0, 2**32 - 1))
    shape = draw(st.sampled_from([(1, 1), (5, 3), (7, 2, 3, 3), (4, 1, 3, 3)]))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight *= torch.rand(shape, generator=generator) < draw(st.sampled_from([1.0, 0.6, 0.2]))
    gamma, beta, mean, bias = torch.randn(4, shape[0], generator=generator, dtype=torch.float64)
    var, zeros = torch.rand(2, shape[0], generator=generator, dtype=torch.float64)
    ranks, coupled, *first_order = torch.rand(5, shape[0], generator=generator, dtype=torch.float64)
    ranks[draw(st.integers(0, shape[0] - 1))] = math.nan
    consumers = []
    for number in range(draw(st.integers(0, 2))):
        channels = torch.randint(shape[0], (4,), generator=generator)  # some several times, some not at all
        energy, seen = torch.rand(2, 4, generator=generator, dtype=torch.float64)
        seen[number] = math.nan
        consumers.append(ConsumerValues(f"next{number}", channels, energy, seen))
    return LayerValues(
        "layer",
        weight,
        bias,
        NormValues(gamma, beta, mean, var, 1e-3),
        zero_fraction=zeros,
        feature_rank=ranks,
        first_order=torch.stack(first_order) - 0.5,
        consumers=tuple(consumers),
        coupled_norm=coupled,
        refit_error=ranks.flip(0),
        rectified=draw(st.booleans()),
    )


def permuted(layer: LayerValues, order: Tensor) -> LayerValues:
    norm = layer.norm
    assert norm is not None and norm.mean is not None and norm.var is not None
    assert layer.bias is not None and layer.zero_fraction is not None and layer.feature_rank is not None
    assert layer.first_order is not None and layer.coupled_norm is not None and layer.consumers is not None
    assert layer.refit_error is not None
    place = order.argsort()  # where each channel went
    return dataclasses.replace(
        layer,
        weight=layer.weight[order],
        bias=layer.bias[order],
        norm=NormValues(norm.gamma[order], norm.beta[order], norm.mean[order], norm.var[order], norm.eps),
        zero_fraction=layer.zero_fraction[order],
        feature_rank=layer.feature_rank[order],
        first_order=layer.first_order[:, order],
        consumers=tuple(dataclasses.replace(use, channels=place[use.channels]) for use in layer.consumers),
        coupled_norm=layer.coupled_norm[order],
        refit_error=layer.refit_error[order],
    )


@pytest.mark.parametrize(("name", "options"), ALL_OPTIONS)
@settings(max_examples=30, deadline=None)
@given(layer=layers(), seed=st.integers(0, 1000))
def test_scores_follow_a_permutation(name: str, options: dict[str, object], layer: LayerValues, seed: int) -> None:
    order = torch.randperm(len(layer.weight), generator=torch.Generator().manual_seed(seed))
    criterion = get_criterion(name, **options)
    torch.testing.assert_close(criterion(permuted(layer, order)), criterion(layer)[order])


@pytest.mark.parametrize(("name", "options"), ALL_OPTIONS)
@settings(max_examples=30, deadline=None)
@given(layer=layers())
def test_scores_are_in_range_and_leave_the_layer_alone(
    name: str, options: dict[str, object], layer: LayerValues
) -> None:
    before = layer.weight.clone()
    scores = get_criterion(name, **options)(layer)
    assert scores.shape == (len(layer.weight),) and scores.dtype == torch.float64
    assert (scores >= 0).all()
    if name == "channel_sparsity":
        assert (scores <= 1).all()
    assert torch.equal(layer.weight, before)


@settings(max_examples=50, deadline=None)
@given(layer=layers(), factor=st.floats(1.5, 100), constant=st.booleans())
def test_fusion_ignores_a_rescaled_filter_and_the_norm_does_not(
    layer: LayerValues, factor: float, constant: bool
) -> None:
    """W → kW, with b, μ and σ² + ε following: the network's function stays, so the coefficient stays."""
    norm = layer.norm
    assert norm is not None and norm.mean is not None and norm.var is not None and layer.bias is not None
    var = factor**2 * (norm.var + norm.eps) - norm.eps
    scaled = LayerValues(
        layer.name,
        layer.weight * factor,
        layer.bias * factor,
        NormValues(norm.gamma, norm.beta, norm.mean * factor, var, norm.eps),
    )
    fused, plain = CRITERIA["fused_conv_bn"], CRITERIA["l2_norm"]
    torch.testing.assert_close(fused(scaled, constant=constant), fused(layer, constant=constant))
    torch.testing.assert_close(plain(scaled), plain(layer) * factor)
    assert (plain(layer) == 0).all() or not torch.allclose(plain(scaled), plain(layer))


@pytest.mark.parametrize("degree", ["weight", "hoyer"])
@settings(max_examples=30, deadline=None)
@given(layer=layers(), factor=st.floats(0.01, 100))
def test_the_sparsity_index_ignores_the_scale_of_a_whole_layer(degree: str, layer: LayerValues, factor: float) -> None:
    scaled = dataclasses.replace(layer, weight=layer.weight * factor)
    score = CRITERIA["channel_sparsity"]
    torch.testing.assert_close(score(scaled, degree=degree), score(layer, degree=degree))


def test_sparser_channels_score_lower() -> None:
    weight = torch.ones(4, 8, 1, 1, dtype=torch.float64)
    for channel in range(4):
        weight[channel, : 2 * channel] = 0
    for degree in ("weight", "hoyer"):
        for lam in (0.0, 1.0):
            scores = CRITERIA["channel_sparsity"](LayerValues("layer", weight), degree=degree, lam=lam).tolist()
            assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert CRITERIA["channel_sparsity"](LayerValues("layer", weight), lam=0.0).tolist() == [1, 0.75, 0.5, 0.25]


# The registry


def test_names_and_options_are_looked_up_with_the_near_match() -> None:
    with pytest.raises(ConfigError, match=r"no criterion 'l2-nrm'; did you mean 'l2_norm'\? There are: channel_spars"):
        get_criterion("l2-nrm")
    with pytest.raises(ConfigError, match=r"no option 'degre'; did you mean 'degree'\? There are: degree, t, lam"):
        get_criterion("channel_sparsity", degre="hoyer")
    with pytest.raises(ConfigError, match="l1_norm has no option 'degree': it has none"):
        get_criterion("l1_norm", degree="hoyer")
    with pytest.raises(ConfigError, match="not int"):
        get_criterion(3)


def test_every_criterion_is_in_the_registry() -> None:
    own = {"channel_sparsity", "fused_conv_bn", "delivered_energy", "refit_error"}
    known = {"l1_norm", "l2_norm", "bn_scale", "fpgm", "taylor", "apoz", "hrank", "group_norm", "random"}
    assert set(CRITERIA) == own | known
    assert all(function.__name__ == name and function.__doc__ for name, function in CRITERIA.items())
