"""Several networks in one chart: accuracy against what they cost, validation accuracy over epochs, and widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunus.report import numbers
from prunus.report.figures import counting_axis
from prunus.report.folder import Figures, RunFolder

COLOURS = 8
"""How many runs have a colour of their own; further ones begin again, with another mark."""

_MARKS = ("circle", "diamond", "square", "triangle-up")
_COSTS: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ("size_bytes", "bytes", "bytes on disk", numbers.size),
    ("macs", "MACs", "MACs for one image", numbers.count),
    ("params", "parameters", "parameters", numbers.count),
    ("latency_ms", "latency", "latency (ms)", numbers.milliseconds),
)


def front_chart(runs: Mapping[str, RunFolder]) -> dict[str, Any] | None:
    """Draw test accuracy against a cost that the reader picks; None where no network was tested.

    A line joins every run's dense network with its pruned one, and another the networks that no other beats in both.
    Costs that not all networks have are left out.
    """
    variants = []
    for key, label, title, write in _COSTS:
        networks = [figures for run in runs.values() for figures in (run.summary.dense, run.summary.pruned)]
        if all(getattr(figures, key) for figures in networks):
            variants.append({"label": label, **_front(runs, key, title, write)})
    tested = any(run.summary.pruned.test_accuracy is not None for run in runs.values())
    return {"variants": variants, "legend": "Cost", "min_width": 0} if variants and tested else None


def _front(
    runs: Mapping[str, RunFolder], key: str, title: str, write: Callable[[Any], str]
) -> dict[str, list[dict[str, Any]] | dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    best = _undominated(runs, key)
    if len(best) > 1 and len(runs) > 1:
        line = {"color": "--muted", "width": 1.5, "dash": "dot", "shape": "hv"}
        x, y = [cost for cost, _ in best], [100 * accuracy for _, accuracy in best]
        traces.append({"type": "scatter", "mode": "lines", "name": "front", "x": x, "y": y, "line": line})
        traces[-1] |= {"hoverinfo": "skip"}
    for number, (name, run) in enumerate(runs.items()):
        sides = [("dense", run.summary.dense), ("pruned", run.summary.pruned)]
        tested = [(side, figures) for side, figures in sides if figures.test_accuracy is not None]
        shape, colour = mark(number), colour_of(number, len(runs))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers+text" if len(runs) == 1 else "lines+markers",
                "name": name,
                "x": [getattr(figures, key) for _, figures in tested],
                "y": [100 * (figures.test_accuracy or 0.0) for _, figures in tested],
                "text": [side for side, _ in tested],
                "textposition": _beside([figures.test_accuracy or 0.0 for _, figures in tested]),
                "cliponaxis": False,
                "customdata": [[side, write(getattr(figures, key))] for side, figures in tested],
                "line": {"color": colour, "width": 1.5},
                "marker": {
                    "symbol": [shape + ("-open" if side == "dense" else "") for side, _ in tested],
                    "size": 13,
                    "color": colour,
                    "line": {"width": 2, "color": colour},
                },
                "hovertemplate": f"%{{customdata[0]}}: %{{y:.2f}} %<br>{title}: %{{customdata[1]}}"
                f"<extra>{name}</extra>",
            }
        )
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": title}, "tickformat": "~s", "rangemode": "tozero"},
        "yaxis": {"title": {"text": "test accuracy (%)"}, "range": _around(traces)},
        "showlegend": len(runs) > 1,
        "hovermode": "closest",
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    }
    return {"data": traces, "layout": layout}


def _beside(accuracies: Sequence[float]) -> list[str]:
    """Say where names of points go that a line joins: the higher one's above it, the lower one's below."""
    return ["top center" if accuracy == max(accuracies) else "bottom center" for accuracy in accuracies]


def _undominated(runs: Mapping[str, RunFolder], key: str) -> list[tuple[float, float]]:
    """Return (cost, accuracy) of the networks that no cheaper one reaches, cheapest first."""
    found: list[tuple[float, float]] = []
    sides: list[Figures] = [side for run in runs.values() for side in (run.summary.dense, run.summary.pruned)]
    points = {(float(getattr(side, key)), side.test_accuracy) for side in sides if side.test_accuracy is not None}
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((cost, accuracy))
    return found


def _around(traces: Sequence[Mapping[str, Any]]) -> list[float]:
    """Leave room above and below what is drawn, and at least two points in all."""
    values = [value for trace in traces for value in trace["y"]]
    low, high = min(values), max(values)
    room = max(1.0, 0.18 * (high - low))
    return [low - room, min(high + room, 100.0 + 0.3 * room)]


def colour_of(number: int, runs: int) -> str:
    """Name the colour of a run; a single one has that of pruned networks."""
    return "--pruned" if runs == 1 else f"--run-{number % COLOURS}"


def mark(number: int) -> str:
    """Name the mark of a run."""
    return _MARKS[number // COLOURS % len(_MARKS)]


def together_chart(runs: Mapping[str, RunFolder]) -> dict[str, Any] | None:
    """Draw every run's validation accuracy, in %, over its epochs; None where no run has any."""
    traces = []
    for number, (name, run) in enumerate(runs.items()):
        x: list[int | None] = []
        y: list[float | None] = []
        stages: list[str | None] = []
        for stage, rows in run.stages.items():
            for row in rows:
                x.append(sum(value is not None for value in x) + 1)
                y.append(None if row.get("val_accuracy") is None else 100 * float(row["val_accuracy"]))
                stages.append(stage)
            x, y, stages = [*x, None], [*y, None], [*stages, None]
        if any(value is not None for value in y):
            colour = colour_of(number, len(runs))
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": name,
                    "x": x,
                    "y": y,
                    "text": stages,
                    "line": {"color": colour, "width": 2},
                    "marker": {"size": 4, "color": colour, "symbol": mark(number)},
                    "hovertemplate": f"%{{y:.2f}} % (%{{text}})<extra>{name}</extra>",
                }
            )
    layout = {
        "xaxis": counting_axis("epoch", max(sum(map(len, run.stages.values())) for run in runs.values())),
        "yaxis": {"title": {"text": "validation accuracy (%)"}},
        "hovermode": "x unified",
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    }
    return {"data": traces, "layout": layout, "min_width": 0} if traces else None


def shares_chart(runs: Mapping[str, RunFolder]) -> dict[str, Any] | None:
    """Draw which share of every layer's channels each run keeps; None where the runs' layers differ."""
    layers = [[width.layer for width in run.summary.widths] for run in runs.values()]
    if not layers[0] or any(names != layers[0] for names in layers):
        return None
    traces = []
    for number, (name, run) in enumerate(runs.items()):
        colour = colour_of(number, len(runs))
        widths = run.summary.widths
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": layers[0],
                "y": [100 * width.after / width.before for width in widths],
                "customdata": [[width.before, width.after] for width in widths],
                "line": {"color": colour, "width": 1.5},
                "marker": {"size": 7, "color": colour, "symbol": mark(number)},
                "hovertemplate": f"%{{customdata[0]}} → %{{customdata[1]}} (%{{y:.0f}} %)<extra>{name}</extra>",
            }
        )
    layout = {
        "xaxis": {"type": "category", "tickangle": -60, "automargin": True, "dtick": 1},
        "yaxis": {"title": {"text": "% of the channels left"}, "rangemode": "tozero"},
        "hovermode": "x unified",
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    }
    return {"data": traces, "layout": layout, "min_width": 120 + 17 * len(layers[0])}
