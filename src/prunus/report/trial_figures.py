"""The chart of a search for the widths, network by network, and what the page says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.report import numbers
from prunus.report.figures import ABOVE, counting_axis, plain
from prunus.report.trials import Trial, WidthTrials

_CHANGES = 4  # widths that are named of those that a trial changed
_NO_LOSS = 1e300  # what is above stands for a loss that was no number


def trials_chart(found: WidthTrials) -> dict[str, Any]:
    """Draw the accuracy on the held-out images, or the loss, of every network, and of the best until then."""
    return {
        "variants": [
            {"label": "accuracy", **_drawn(found, "held-out accuracy (%)", _accuracies(found))},
            {"label": "loss", **_drawn(found, "held-out loss", _losses(found))},
        ],
        "legend": "Show",
        "min_width": 0,
    }


def trials_words(found: WidthTrials) -> str:
    """Say how many networks were measured, and what the best has more than the global ranking, which comes first."""
    best = found.best[-1]
    first, last = (numbers.percent(found.trials[number].accuracy) for number in (0, best))
    took = f" in {numbers.duration(found.seconds)}" if found.seconds else ""
    count = len(found.trials)
    networks = f"{count} network{'s' if count > 1 else ''} within the budget{took}"
    return (
        f"{networks}, each repaired without training and measured on held-out images. The global ranking, which is the "
        f"first, has {first}; number {best + 1} has the least loss, and {last}"
    )


def _accuracies(found: WidthTrials) -> list[float | None]:
    return [100 * trial.accuracy for trial in found.trials]


def _losses(found: WidthTrials) -> list[float | None]:
    return [trial.loss if trial.loss < _NO_LOSS else None for trial in found.trials]


def _drawn(found: WidthTrials, title: str, values: Sequence[float | None]) -> dict[str, Any]:
    best = found.best
    starts = [number for number, trial in enumerate(found.trials) if trial.parent is None]
    changed = [number for number, trial in enumerate(found.trials) if trial.parent is not None]

    def points(name: str, chosen: Sequence[int], symbol: str, colour: str) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [number + 1 for number in chosen],
            "y": [values[number] for number in chosen],
            "text": [_label(found, number) for number in chosen],
            "marker": {"size": 8, "symbol": symbol, "color": colour},
            "hovertemplate": "%{text}<extra></extra>",
        }

    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "least loss so far",
        "x": [number + 1 for number in range(len(best))],
        "y": [values[number] for number in best],
        "line": {"color": "--pruned", "width": 2, "shape": "hv"},
        "hoverinfo": "skip",
    }
    traces = [
        points("widths of another changed", changed, "circle", "--dense"),
        line,
        points("start", starts, "diamond", "--ink"),
    ]
    layout = {
        "xaxis": counting_axis("network", len(best)),
        "yaxis": {"title": {"text": title}},
        "hovermode": "closest",
        "legend": ABOVE,
    }
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def _label(found: WidthTrials, number: int) -> str:
    trial = found.trials[number]
    if trial.parent is None:
        made = "the global ranking" if number == 0 else "another way to share the budget out"
    else:
        made = f"made of network {trial.parent + 1}<br>{_changes(found, trial, found.trials[trial.parent])}"
    loss = f"{trial.loss:.4f}" if trial.loss < _NO_LOSS else "no number"
    return f"network {number + 1}: {numbers.percent(trial.accuracy)}, loss {loss}<br>{made}"


def _changes(found: WidthTrials, trial: Trial, parent: Trial) -> str:
    """Name the widths that a trial changed most, in proportion, and count the others."""
    pairs = [
        (row, old, new) for row, (old, new) in enumerate(zip(parent.widths, trial.widths, strict=True)) if old != new
    ]
    pairs.sort(key=lambda pair: -max(pair[1], pair[2]) / max(1, min(pair[1], pair[2])))
    named = [
        f"{plain(found.groups[row]) if found.groups else f'group {row + 1}'} {old} → {new}"
        for row, old, new in pairs[:_CHANGES]
    ]
    more = [f"and {len(pairs) - _CHANGES} more"] if len(pairs) > _CHANGES else []
    return "<br>".join(named + more)
