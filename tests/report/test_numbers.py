"""Figures as people read them."""

from __future__ import annotations

import pytest

from prunus.report import numbers


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (1000, "1.0 k"), (272474, "272.5 k"), (40813184, "40.8 M")])
def test_counts(value: int, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(640, "640 B"), (639872, "639.9 kB"), (999949, "999.9 kB"), (999950, "1.00 MB"), (1113000, "1.11 MB")],
)
def test_sizes_are_powers_of_ten(value: int, text: str) -> None:
    assert numbers.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "+1.23"), (-0.0048, "−0.48"), (0.00001, "0.00"), (-0.00001, "0.00")]
)
def test_points_have_a_sign_unless_nothing_changed(value: float, text: str) -> None:
    assert numbers.points(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.4, "0.4 s"), (75, "1 min 15 s"), (7260, "2 h 1 min"), (3599.7, "1 h 0 min")]
)
def test_durations(value: float, text: str) -> None:
    assert numbers.duration(value) == text


def test_what_was_not_measured_is_a_dash() -> None:
    assert numbers.milliseconds(None) == "–"
    assert numbers.times(None, 1.0) == "–"
    assert numbers.times(2.0, 1.0) == "2.00×"
    assert numbers.milliseconds(2.345) == "2.35 ms" or numbers.milliseconds(2.345) == "2.34 ms"
    assert numbers.milliseconds(123.4) == "123 ms"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.21, "0.210"),
        (0.2726, "0.273"),
        (2.0, "2.00"),
        (10.04, "10.0"),
        (99.949, "99.9"),
        (99.96, "100"),
        (2512.6, "2513"),
    ],
)
def test_three_digits_are_three_whatever_they_are(value: float, text: str) -> None:
    assert numbers.three_digits(value) == text
