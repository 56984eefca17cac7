"""Least squares from sums equal least squares from the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunus.recovery.least_squares import NormalEquations


def data(groups: int = 2, pairs: int = 60, inputs: int = 7, outputs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw(groups, pairs, inputs) + 3, draw(groups, pairs, outputs) - 5, draw(groups, outputs, inputs)


def summed(x: Tensor, y: Tensor, parts: int = 7) -> NormalEquations:
    sums = NormalEquations(len(x), x.shape[2], y.shape[2])
    for some_x, some_y in zip(x.split(parts, 1), y.split(parts, 1), strict=True):
        sums.add(some_x, some_y)
    return sums


@pytest.mark.parametrize("intercept", [True, False])
def test_the_solution_is_that_of_the_dense_problem(intercept: bool) -> None:
    x, y, start = data()
    weight, constant = summed(x, y).moments().solve(start, ridge=0.0, intercept=intercept)
    for group in range(2):
        full = torch.cat((x[group], torch.ones(60, 1, dtype=torch.float64)), 1) if intercept else x[group]
        expected = torch.linalg.lstsq(full, y[group]).solution
        torch.testing.assert_close(weight[group], expected[:7].T, rtol=1e-8, atol=1e-8)
        wanted = expected[7] if intercept else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(constant[group], wanted, rtol=1e-8, atol=1e-8)


def test_the_ridge_holds_weights_where_they_are() -> None:
    x, y, start = data()
    sums = summed(x, y).moments()
    ridge = 0.3
    weight, _ = sums.solve(start, ridge=ridge, intercept=False)
    for group in range(2):
        scale = x[group].square().mean()  # over pairs and inputs
        held = (ridge * scale * 60).sqrt() * torch.eye(7, dtype=torch.float64)
        full, wanted = torch.cat((x[group], held)), torch.cat((y[group], held @ start[group].T))
        expected = torch.linalg.lstsq(full, wanted).solution.T
        torch.testing.assert_close(weight[group], expected, rtol=1e-8, atol=1e-8)
    far, _ = sums.solve(start, ridge=1e12, intercept=True)
    torch.testing.assert_close(far, start, rtol=1e-6, atol=1e-6)


def test_inputs_that_say_the_same_twice_and_inputs_that_say_nothing() -> None:
    """The system is singular: the fit is as good as any, and what the data do not touch stays."""
    x, y, start = data()
    x[:, :, 6], x[:, :, 2] = x[:, :, 1], 0
    for ridge in (0.0, 1e-9):
        weight, constant = summed(x, y).moments().solve(start, ridge=ridge, intercept=True)
        for group in range(2):
            full = torch.cat((x[group], torch.ones(60, 1, dtype=torch.float64)), 1)
            best = torch.linalg.lstsq(full, y[group], driver="gelsd").solution
            found = x[group] @ weight[group].T + constant[group]
            torch.testing.assert_close(found, full @ best, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(weight[:, :, 2], start[:, :, 2], rtol=1e-12, atol=1e-12)


def test_the_error_is_the_mean_square_of_what_is_left() -> None:
    x, y, start = data()
    sums = summed(x, y).moments()
    constant = torch.arange(6, dtype=torch.float64).view(2, 3)
    error, size = sums.error(start, constant), sums.size
    left = x @ start.mT + constant[:, None] - y
    assert error == pytest.approx(float(left.square().mean(1).sum()), rel=1e-12)
    assert size == pytest.approx(float(y.square().mean(1).sum()), rel=1e-12)


def test_sums_are_joined_whatever_they_started_from() -> None:
    x, y, start = data()
    sums, other = summed(x[:, :21], y[:, :21]), summed(x[:, 21:] + 0, y[:, 21:])
    sums.join(other)
    sums.join(NormalEquations(2, 7, 3))
    empty = NormalEquations(2, 7, 3)
    empty.join(sums)
    for joined in (sums, empty):
        for name, expected in vars(summed(x, y).moments()).items():
            torch.testing.assert_close(vars(joined.moments())[name], expected, rtol=1e-10, atol=1e-10)
    kept, constant = sums.moments().solve(start, ridge=float("inf"), intercept=True)
    assert torch.equal(kept, start)
    torch.testing.assert_close(constant, (y - x @ start.mT).mean(1), rtol=1e-10, atol=1e-10)
