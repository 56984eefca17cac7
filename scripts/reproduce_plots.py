"""Pictures for docs/reproduce.md: accuracy against cost, found widths, and how a search in training moved."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.rcParams.update({"svg.hashsalt": "prunus", "svg.fonttype": "none", "font.size": 9})  # the same text each time
mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})

Point = tuple[float, float]


def front(methods: Mapping[str, Sequence[Sequence[Point]]], dense: float, title: str) -> str:
    """Draw accuracy against the share of the MACs, as SVG: a point for every budget, with the spread over its seeds.

    Args:
        methods: for each method, and each of its budgets, (share of the MACs, test accuracy in %) of every seed.
        dense: test accuracy of the dense network in %.
        title: what stands above.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(dense, color="black", linestyle="--", linewidth=1, label="dense")
    for label, budgets in methods.items():
        means = sorted(tuple(map(statistics.mean, zip(*seeds, strict=True))) for seeds in budgets)
        (line,) = axes.plot(*zip(*means, strict=True), linewidth=1, marker="o", markersize=4, label=label)
        for seeds in budgets:
            if len(seeds) > 1:
                share, accuracy = (statistics.mean(values) for values in zip(*seeds, strict=True))
                error = statistics.stdev(value for _, value in seeds)
                axes.errorbar([share], [accuracy], [error], color=line.get_color(), capsize=3)
    axes.set(title=title, xlabel="share of the MACs", ylabel="test accuracy in %")
    figure.legend(loc="outside right upper", frameon=False)
    return _svg(figure)


def widths(found: Mapping[str, Mapping[str, tuple[int, int]]], title: str) -> str:
    """Draw what share of its channels every layer kept, as SVG: a line for every network.

    Args:
        found: for each network, by layer, its channels before and after.
        title: what stands above.
    """
    layers = list(dict.fromkeys(layer for network in found.values() for layer in network))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, network in found.items():
        shares = [network[layer][1] / network[layer][0] if layer in network else float("nan") for layer in layers]
        axes.plot(range(len(layers)), shares, linewidth=1, marker=".", label=label, drawstyle="steps-mid")
    axes.set(title=title, ylabel="channels kept", ylim=(0, 1.03), xticks=range(len(layers)))
    axes.set_xticklabels(layers, rotation=90, fontsize=7 if len(layers) < 40 else 5)
    figure.legend(loc="outside right upper", frameon=False)
    return _svg(figure)


def masks(searches: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> str:
    """Draw how searches in training moved, as SVG: what they keep by epoch, and below it what had come back.

    Args:
        searches: for each search its epochs, as they are kept: ``epoch``, ``channels``, ``kept_channels`` and
            ``returned_channels``.
        title: what stands above.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    for label, epochs in searches.items():
        numbers = [epoch["epoch"] for epoch in epochs]
        kept = [epoch["kept_channels"] / epoch["channels"] for epoch in epochs]
        (line,) = above.plot(numbers, kept, linewidth=1, marker=".", label=label)
        back = [epoch["returned_channels"] for epoch in epochs]
        below.plot(numbers, back, linewidth=1, marker=".", color=line.get_color())
    above.set(title=title, ylabel="channels kept", ylim=(0, 1.03))
    below.set(xlabel="epoch of the search", ylabel="channels that came back")
    figure.legend(loc="outside right upper", frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
