"""Least squares from sums: the data pass by once, and only their products are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class NormalEquations:
    """Sums over (x, y) pairs of several independent problems: x (groups, inputs), y (groups, outputs), in float64.

    Memory is groups · inputs · (inputs + outputs) numbers, however many pairs there are.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.xx, self.xy = zeros(groups, inputs, inputs), zeros(groups, inputs, outputs)
        self.x, self.y, self.yy = zeros(groups, inputs), zeros(groups, outputs), zeros(groups, outputs)
        self.origin: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count pairs: x (groups, pairs, inputs), y (groups, pairs, outputs), float64."""
        if self.origin is None:  # sums of what lies around zero lose no digits when the means are taken out
            self.origin = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - self.origin[0], y - self.origin[1]
        self.count += x.shape[1]
        self.xx.baddbmm_(x.mT, x)
        self.xy.baddbmm_(x.mT, y)
        self.x += x.sum(1)
        self.y += y.sum(1)
        self.yy += y.square().sum(1)

    def join(self, other: NormalEquations) -> None:
        """Count the pairs of another sum too, about whose origin nothing need be the same."""
        if other.origin is None:
            return
        if self.origin is None:
            self.origin = other.origin
        assert self.origin is not None
        count = other.count
        dx, dy = (theirs - own for theirs, own in zip(other.origin, self.origin, strict=True))  # (groups, 1, …)
        dx, dy = dx[:, 0], dy[:, 0]
        crossed = other.x[:, :, None] * dx[:, None]
        self.xx += other.xx + crossed + crossed.mT + count * dx[:, :, None] * dx[:, None]
        self.xy += other.xy + other.x[:, :, None] * dy[:, None] + dx[:, :, None] * (other.y + count * dy)[:, None]
        self.yy += other.yy + 2 * dy * other.y + count * dy.square()
        self.x += other.x + count * dx
        self.y += other.y + count * dy
        self.count += count

    def moments(self) -> Moments:
        """Return the means of all, and the mean products about them."""
        assert self.origin is not None
        x, y, share = self.x / self.count, self.y / self.count, 1 / self.count
        xx = torch.baddbmm(self.xx, x[:, :, None], x[:, None], beta=share, alpha=-1)
        xy = torch.baddbmm(self.xy, x[:, :, None], y[:, None], beta=share, alpha=-1)
        yy = self.yy / self.count - y.square()
        return Moments(x + self.origin[0][:, 0], y + self.origin[1][:, 0], xx, xy, yy)


@dataclass(frozen=True)
class Moments:
    """Means x (groups, inputs) and y (groups, outputs), and the covariances xx and xy and variances yy about them."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def solve(self, start: Tensor, *, ridge: float, intercept: bool) -> tuple[Tensor, Tensor]:
        """Minimise mean |W·x + b − y|² + λ·|W − start|² by Cholesky, or by lstsq where that fails.

        λ is `ridge` times the mean square of an input. Where the data say nothing, W stays at `start`.

        Args:
            start: (groups, outputs, inputs).
            ridge: relative, ≥ 0; infinite leaves W at `start`.
            intercept: whether there is a b; then the mean square is that about the mean.

        Returns:
            W, (groups, outputs, inputs), and b, (groups, outputs), zeros without intercept.
        """
        weight = start
        if not math.isinf(ridge):
            system, right = (self.xx.clone(), self.xy) if intercept else self._about_zero()
            diagonal = system.diagonal(dim1=1, dim2=2)
            right = torch.baddbmm(right, system, start.mT, alpha=-1)
            diagonal += ridge * diagonal.mean(1, keepdim=True)
            weight = start + _solved(system, right).mT
        constant = self.y - (weight @ self.x[:, :, None])[:, :, 0] if intercept else torch.zeros_like(self.y)
        return weight, constant

    def error(self, weight: Tensor, constant: Tensor) -> float:
        """Return the sum over outputs of mean (W·x + b − y)²."""
        residual = self.yy - 2 * (weight * self.xy.mT).sum(2) + ((weight @ self.xx) * weight).sum(2)
        offset = (weight @ self.x[:, :, None])[:, :, 0] + constant - self.y
        return float((residual + offset.square()).sum().clamp_min(0))

    @property
    def size(self) -> float:
        """The sum over outputs of the mean square of y."""
        return float((self.yy + self.y.square()).sum())

    def _about_zero(self) -> tuple[Tensor, Tensor]:
        """Return the mean products of x with x and with y as they are."""
        column = self.x[:, :, None]
        return torch.baddbmm(self.xx, column, self.x[:, None]), torch.baddbmm(self.xy, column, self.y[:, None])


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric systems, (groups, n, n) and (groups, n, m)."""
    factor, failed = torch.linalg.cholesky_ex(system)
    found = torch.cholesky_solve(right, factor)
    for group in range(len(system)):
        diagonal = factor[group].diagonal()
        singular = not bool(diagonal.min() > 1e-7 * diagonal.max())  # below, rounding decides what comes out
        if int(failed[group]) or singular or not bool(found[group].isfinite().all()):
            answer = torch.linalg.lstsq(system[group].cpu(), right[group].cpu(), rcond=1e-12, driver="gelsd").solution
            found[group] = answer.to(found)
    return found
