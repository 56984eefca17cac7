"""The criteria that look at measurements, on numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from prunus.criteria import CRITERIA, ConsumerValues, LayerValues, NormValues
from prunus.criteria.delivered_energy import rectified_variance
from prunus.errors import ConfigError


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def layer(**fields: object) -> LayerValues:
    """Three filters, (3, 4), (0, 0) and (−3, −4), with biases 1, 2, 3."""
    weight = torch.tensor([[3.0, 4], [0, 0], [-3, -4]], dtype=torch.float64)
    return LayerValues("conv", weight, values(1, 2, 3), **fields)  # type: ignore[arg-type]


CONSUMERS = (
    ConsumerValues("next", torch.tensor([0, 1, 1]), values(1, 2, 3), values(4, 5, 6)),
    ConsumerValues("other", torch.tensor([0]), values(10), values(math.nan)),
)
NORM = NormValues(gamma=values(2, -3, 1), beta=values(0, 1, -1), mean=None, var=None, eps=1e-5)


def test_fpgm_adds_distances_between_filters_with_their_signs() -> None:
    """The first is 5 from the second and 10 from its negative."""
    assert CRITERIA["fpgm"](layer()).tolist() == [15, 10, 15]


def test_taylor_squares_what_is_summed_and_averages_over_batches() -> None:
    found = CRITERIA["taylor"](layer(first_order=torch.stack([values(1, -2, 0), values(3, 2, 0)])))
    assert found.tolist() == [(1 + 9) / 2, 4, 0]


def test_apoz_counts_what_is_not_zero() -> None:
    assert CRITERIA["apoz"](layer(zero_fraction=values(0.25, math.nan, 1))).tolist() == [0.75, 1, 0]


def test_hrank_takes_the_highest_where_nothing_is_known() -> None:
    assert CRITERIA["hrank"](layer(feature_rank=values(3, math.nan, 1.5))).tolist() == [3, 3, 1.5]
    assert CRITERIA["hrank"](layer(feature_rank=values(*[math.nan] * 3))).tolist() == [1, 1, 1]


def test_group_norm_is_the_coupled_norm() -> None:
    coupled = values(7, 8, math.nan)
    found = CRITERIA["group_norm"](layer(coupled_norm=coupled))
    assert found.tolist() == [7, 8, 5]
    found.zero_()
    assert coupled[0] == 7


def test_energy_is_summed_over_the_slices_of_all_consumers() -> None:
    """Where a consumer was not met, and where there is none, the layer's own variance counts: here γ²."""
    found = CRITERIA["delivered_energy"](layer(consumers=CONSUMERS, norm=NORM))
    assert found.tolist() == [4 * 1 + 4 * 10, 5 * 2 + 6 * 3, 1]


def test_energy_without_data() -> None:
    plain = layer(consumers=CONSUMERS, norm=NORM)
    assert CRITERIA["delivered_energy"](plain, variance="data-free").tolist() == [4 * 11, 9 * 5, 1]
    relu = dataclasses.replace(plain, rectified=True)
    own = rectified_variance(values(0, 1, -1), values(2, 3, 1))
    assert own[0].item() == pytest.approx(4 * (1 / 2 - 1 / (2 * math.pi)))
    torch.testing.assert_close(CRITERIA["delivered_energy"](relu, variance="data-free"), own * values(11, 5, 1))


def test_energy_without_data_or_batchnorm_is_relative_to_the_layers_mean() -> None:
    bare = layer(consumers=CONSUMERS)
    assert CRITERIA["delivered_energy"](bare, variance="data-free").tolist() == [275 / 100, 0, 25 / 100]
    bare_relu = CRITERIA["delivered_energy"](layer(consumers=CONSUMERS, rectified=True), variance="data-free")
    energy = rectified_variance(values(1, 2, 3), values(5, 0, 5)) * values(11, 5, 1)
    torch.testing.assert_close(bare_relu, energy / energy.mean())
    assert CRITERIA["delivered_energy"](layer(consumers=())).tolist() == [25 / (50 / 3), 0, 25 / (50 / 3)]
    assert CRITERIA["delivered_energy"](bare).tolist() == [4 * 1 + 25 * 10, 5 * 2 + 6 * 3, 25]  # measured: as it is
    still = dataclasses.replace(bare, weight=torch.zeros_like(bare.weight))
    assert CRITERIA["delivered_energy"](still, variance="data-free").tolist() == [0, 0, 0]


def test_energy_takes_what_was_measured_if_it_was() -> None:
    full = layer(consumers=CONSUMERS, norm=NORM)
    bare = layer(consumers=tuple(dataclasses.replace(use, variance=None) for use in CONSUMERS), norm=NORM)
    energy = CRITERIA["delivered_energy"]
    assert energy(full).tolist() == energy(full, variance="calibrated").tolist()
    assert energy(bare).tolist() == energy(full, variance="data-free").tolist() != energy(full).tolist()


def test_the_variance_after_relu_is_that_of_a_rectified_normal() -> None:
    """Against the integral, by the midpoint rule."""
    for mean, spread in [(0.0, 1.0), (0.7, 1.3), (-2.0, 0.5), (3.0, 2.0)]:
        x = torch.linspace(mean - 10 * spread, mean + 10 * spread, 200_001, dtype=torch.float64)
        density = torch.exp(-((x - mean) ** 2) / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi))
        weight, positive = density * (x[1] - x[0]), x.clamp_min(0)
        expected = (weight * positive**2).sum() - (weight * positive).sum() ** 2
        found = rectified_variance(values(mean), values(spread))[0]
        assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)
    still = rectified_variance(values(5, -5, 0, 100), values(0, 0, 0, 1))
    assert still.tolist() == pytest.approx([0, 0, 0, 1], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("apoz", {}, r"apoz needs zero_fraction of layer 'conv', which is measured on images; pass calibration=images"),
        (
            "hrank",
            {},
            r"hrank needs feature_rank of layer 'conv', which is measured on images; pass calibration=images",
        ),
        ("taylor", {}, r"first_order of layer 'conv', .* with labels; pass calibration=loader, .* \(images, labels\)"),
        (
            "group_norm",
            {},
            r"group_norm needs coupled_norm of layer 'conv'; prunus.score\(model, graph, 'group_norm'\)",
        ),
        ("delivered_energy", {}, "delivered_energy needs consumers of layer 'conv'"),
        ("delivered_energy", {"variance": "free"}, "no variance 'free'; it is one of auto, calibrated, data"),
    ],
)
def test_what_was_not_measured_is_said(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CRITERIA[name](layer(), **options)


def test_a_variance_that_was_not_measured_is_said() -> None:
    consumers = (dataclasses.replace(CONSUMERS[0], variance=None),)
    with pytest.raises(
        ConfigError, match=r"variance of layer 'conv', .* pass calibration=images, .*variance=.data-free"
    ):
        CRITERIA["delivered_energy"](layer(consumers=consumers), variance="calibrated")
