"""A plot of accuracy against MACs, as an SVG file that needs nothing to be shown."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 56, 330, 36, 44
COLOURS = ("#1b6ca8", "#c0392b", "#e08e0b", "#5b5b5b", "#a0a0a0", "#2e8b57", "#7d3c98", "#b0a160", "#806040")
COLOURS += ("#17becf", "#e377c2", "#7fb000", "#000080")
GAP = 0.02  # of the MACs: nearer points are seeds of one budget

Points = Sequence[tuple[float, float]]


def plot(methods: Mapping[str, Points], dense: float | None, title: str) -> str:
    """Draw each method's seeds as dots and a line through their means; the dense accuracy as a dashed line.

    Args:
        methods: (share of the MACs, accuracy) of every network, both in [0, 1], by what the method is called.
        dense: accuracy of the whole network, in [0, 1].
        title: what stands above.
    """
    accuracies = [y for points in methods.values() for _, y in points] + ([] if dense is None else [dense])
    low, high = min(accuracies), max(accuracies)
    margin = max(0.05 * (high - low), 0.002)
    axes = _Axes(low - margin, high + margin)
    drawn = [*axes.drawn(), f'<text x="{LEFT}" y="20" font-weight="bold">{html.escape(title)}</text>']
    if dense is not None:
        y = axes.y(dense)
        drawn.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#222" stroke-dasharray="5 4" fill="none"/>')
    for number, (label, points) in enumerate(methods.items()):
        drawn += _method(axes, number, label, points)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *drawn, "</svg>", ""])


class _Axes:
    """From shares of the MACs, 0 to 0.6, and accuracies to places on the picture."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, share: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * share / 0.6

    def y(self, accuracy: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (accuracy - self.low) / (self.high - self.low)

    def drawn(self) -> list[str]:
        """Draw ticks and names of both axes."""
        made = []
        for tick in range(7):
            x = self.x(tick / 10)
            made.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
            made.append(f'<text x="{x:.1f}" y="{HEIGHT - 26}" text-anchor="middle">{tick / 10:g}</text>')
        for tick in range(5):
            value = self.low + (self.high - self.low) * tick / 4
            y = self.y(value)
            made.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#eee"/>')
            made.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.1f}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        return [*made, f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">share of the MACs</text>']


def _method(axes: _Axes, number: int, label: str, points: Points) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    made = [f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
    means = [tuple(statistics.fmean(part) for part in zip(*group, strict=True)) for group in _budgets(points)]
    line = "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in means)
    made.append(f'<path d="M{line}" stroke="{colour}" fill="none" stroke-width="1.5"/>')
    y, x = TOP + 14 + 20 * number, WIDTH - RIGHT + 16
    made.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
    return [*made, f'<text x="{x + 16}" y="{y}">{html.escape(label)}</text>']


def _budgets(points: Points) -> list[list[tuple[float, float]]]:
    """Part the points of one method by budget."""
    groups: list[list[tuple[float, float]]] = []
    for point in sorted(points):
        if groups and point[0] - groups[-1][-1][0] < GAP:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups
