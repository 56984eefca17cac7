"""Least squares from sums: the data pass by once, and only their products are kept."""

from __future__ import annotations

import math

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

    def moments(self, *, centred: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the means of x and y, and the mean products xx, xy and yy: about the means, or about zero."""
        assert self.origin is not None
        x, y = self.x / self.count, self.y / self.count
        xx = self.xx / self.count - x[:, :, None] * x[:, None]
        xy = self.xy / self.count - x[:, :, None] * y[:, None]
        yy = self.yy / self.count - y.square()
        x, y = x + self.origin[0][:, 0], y + self.origin[1][:, 0]
        if centred:
            return x, y, xx, xy, yy
        return x, y, xx + x[:, :, None] * x[:, None], xy + x[:, :, None] * y[:, None], yy + y.square()

    def solve(self, start: Tensor, *, ridge: float, intercept: bool) -> tuple[Tensor, Tensor]:
        """Minimise mean |W·x + b − y|² + λ·|W − start|² by Cholesky, or by lstsq where that fails.

        λ is `ridge` times the mean square of an input. Where the data say nothing, W stays at `start`.

        Args:
            start: (groups, outputs, inputs).
            ridge: relative, ≥ 0; infinite leaves W at `start`.
            intercept: whether there is a b.

        Returns:
            W, (groups, outputs, inputs), and b, (groups, outputs), zeros without intercept.
        """
        x, y, xx, xy, _ = self.moments(centred=intercept)
        if math.isinf(ridge):
            return start, y - (start @ x[:, :, None])[:, :, 0] if intercept else torch.zeros_like(y)
        scale = xx.diagonal(dim1=1, dim2=2).mean(1)
        system = xx + (ridge * scale)[:, None, None] * torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
        change = _solved(system, xy - xx @ start.mT)
        weight = start + change.mT
        constant = y - (weight @ x[:, :, None])[:, :, 0] if intercept else torch.zeros_like(y)
        return weight, constant

    def error(self, weight: Tensor, constant: Tensor) -> tuple[float, float]:
        """Return the sum over outputs of mean (W·x + b − y)², and of y's mean square."""
        x, y, xx, xy, yy = self.moments(centred=True)
        residual = yy - 2 * (weight * xy.mT).sum(2) + ((weight @ xx) * weight).sum(2)
        offset = (weight @ x[:, :, None])[:, :, 0] + constant - y
        return float((residual + offset.square()).sum().clamp_min(0)), float((yy + y.square()).sum())


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
