"""The page of a sweep: accuracy against what a network costs, and the cells that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report import numbers
from prunus.report.figures import ABOVE, plain
from prunus.report.page import fill

COST_NAMES = {"macs": "MACs", "size_bytes": "bytes on disk"}
_SHORT = {"macs": "MACs", "size_bytes": "bytes"}


def render_front(title: str, rows: Sequence[Mapping[str, Any]], fronts: Mapping[str, Sequence[str]]) -> str:
    """Render the page: HTML with its style, its script and Plotly in it.

    Args:
        title: of the page.
        rows: cells as they stand in sweep.json.
        fronts: by cost, a key of COST_NAMES, the names of the cells in its front, cheapest first.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row["settings"]))
    return fill(
        "front.html.jinja",
        styles=("page", "report"),
        scripts=("charts",),
        charts={cost: front_chart(rows, fronts[cost], cost) for cost in COST_NAMES},
        title=title,
        rows=rows,
        done=sum(row["status"] == "done" for row in rows),
        keys=keys,
        words={key for key in keys if any(isinstance(row["settings"].get(key), str) for row in rows)},
        costs=COST_NAMES,
        short=_SHORT,
        setting=setting,
    )


def front_chart(rows: Sequence[Mapping[str, Any]], front: Sequence[str], cost: str) -> dict[str, Any]:
    """Draw every cell that is done by its cost and its held-out accuracy in %, and a stair through the front."""
    measured = {row["name"]: row for row in rows if row["held_out_accuracy"] is not None and row[cost] is not None}
    best = [measured[name] for name in front]
    others = [row for name, row in measured.items() if name not in front]

    def points(name: str, chosen: Sequence[Mapping[str, Any]], colour: str, more: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "type": "scatter",
            "name": name,
            "x": [row[cost] for row in chosen],
            "y": [100 * row["held_out_accuracy"] for row in chosen],
            "text": [_label(row) for row in chosen],
            "marker": {"size": 9, "color": colour},
            "hovertemplate": "%{text}<extra></extra>",
            **more,
        }

    line = {"color": "--pruned", "width": 2, "shape": "hv"}
    return {
        "data": [
            points("other cells", others, "--dense", {"mode": "markers"}),
            points("front", best, "--pruned", {"mode": "lines+markers", "line": line}),
        ],
        "layout": {
            "xaxis": {"title": {"text": COST_NAMES[cost]}, "tickformat": "~s", "rangemode": "tozero"},
            "yaxis": {"title": {"text": "held-out accuracy (%)"}},
            "hovermode": "closest",
            "legend": ABOVE,
        },
        "min_width": 0,
    }


def _label(row: Mapping[str, Any]) -> str:
    settings = "<br>".join(f"{key.replace('_', ' ')} {plain(setting(value))}" for key, value in row["settings"].items())
    held_out, test = numbers.percent(row["held_out_accuracy"]), numbers.percent(row["test_accuracy"])
    costs = f"{numbers.count(row['macs'])} MACs, {numbers.size(row['size_bytes'])}"
    return f"{settings}<br>held out {held_out}, test {test}<br>{costs}"


def setting(value: object) -> str:
    """Write the value of a setting; what a search drew with sixteen digits, with four."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
