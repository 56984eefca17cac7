"""The charts of the page as plain Plotly JSON; colours are names of CSS variables, so that light and dark both fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.folder import Width

Stages = Mapping[str, Sequence[dict[str, Any]]]
_FEW = 16  # epochs that are all numbered
_POWERS = 8  # of ten that are named at most
_WIDE = 100  # how many times the lowest number the highest is, until twos and fives have no room
_SQUEEZED = 50  # how many times the lowest loss the highest is, until the curve would be flat for most epochs
ABOVE = {"y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}
"""Where the legend of a chart lies whose lower part is full."""

STAGE_NAMES = {
    "dense": "dense training",
    "sparse": "sparse training",
    "search": "search",
    "finetune": "fine-tuning",
    "int8": "8-bit training",
}


def stage_name(stage: str) -> str:
    """Name a stage for people: "finetune" → "fine-tuning"."""
    return STAGE_NAMES.get(stage, stage)


def plain(text: str) -> str:
    """Write a text so that Plotly, which reads its labels as HTML, shows it as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def counting_axis(title: str, count: int) -> dict[str, Any]:
    """Return an axis of the numbers from 1 to `count`: no room for others, and no fractions between few of them."""
    steps = {"dtick": 1, "tickangle": 0} if count <= _FEW else {}
    return {"title": {"text": title}, "range": [0.5, count + 0.5], **steps}


def decades(low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis whose labels are all of a size: 1, 2 and 5, or powers of ten where they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < _WIDE * low else (1,)
    ticks = [step * 10.0**power for power in powers[:: 1 + (len(powers) - 1) // _POWERS] for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def accuracy_chart(stages: Stages) -> dict[str, Any] | None:
    """Draw training and validation accuracy, in %, over the epochs of all stages one after another; None without."""
    keys = (("val_accuracy", "validation", "solid"), ("train_accuracy", "training", "dot"))
    return _curves(stages, keys, 100.0, "accuracy (%)", ".2f", {"y": 0.02, "yanchor": "bottom"})


def loss_chart(stages: Stages) -> dict[str, Any] | None:
    """Draw training and validation loss over the epochs of all stages one after another; None without epochs."""
    keys = (("val_loss", "validation", "solid"), ("loss", "training", "dot"))
    chart = _curves(stages, keys, 1.0, "loss", ".4f", {"y": 0.98, "yanchor": "top"})
    values = [value for trace in (chart or {"data": []})["data"] for value in trace["y"] if value is not None]
    if chart and values and min(values) > 0 and max(values) > _SQUEEZED * min(values):
        chart["layout"]["yaxis"] |= {"title": {"text": "loss (logarithmic)"}, **decades(min(values), max(values))}
    return chart


def widths_chart(widths: Sequence[Width]) -> dict[str, Any] | None:
    """Draw the channels of every layer, before as an outline and after as a filled bar in it; None without layers."""
    if not widths:
        return None
    layers = [width.layer for width in widths]

    def bars(name: str, values: list[int], colour: str, line: str) -> dict[str, Any]:
        marker = {"color": colour, "line": {"color": line, "width": 1}}
        hover = "%{x}<br>" + name + ": %{y} channels<extra></extra>"
        return {"type": "bar", "name": name, "x": layers, "y": values, "marker": marker, "hovertemplate": hover}

    return {
        "data": [
            bars("before", [width.before for width in widths], "--dense-soft", "--dense"),
            bars("after", [width.after for width in widths], "--pruned", "--pruned"),
        ],
        "layout": {
            "barmode": "overlay",
            "bargap": 0.25,
            "xaxis": {"type": "category", "tickangle": -60, "automargin": True, "dtick": 1},
            "yaxis": {"title": {"text": "channels"}, "rangemode": "tozero"},
            "legend": ABOVE,
        },
        "min_width": 120 + 17 * len(widths),  # pixels; below that the names would run into each other
    }


def sparsity_chart(stages: Stages) -> dict[str, Any] | None:
    """Draw how many channels have which sparsity index: after sparse training filled in, before it as an outline.

    None where there was no sparse training.
    """
    rows = [row for row in stages.get("sparse", []) if row.get("index_histogram")]
    if not rows or not any(rows[0].get("index_before") or ()):
        return None

    before, after = rows[0]["index_before"], rows[-1]["index_histogram"]
    used = max(number for number, counts in enumerate(zip(before, after, strict=True)) if any(counts))

    def bars(name: str, counts: Sequence[int], colour: str, line: str) -> dict[str, Any]:
        width = 1 / len(counts)
        return {
            "type": "bar",
            "name": name,
            "x": [(number + 0.5) * width for number in range(len(counts))],
            "y": list(counts),
            "width": width,
            "marker": {"color": colour, "line": {"color": line, "width": 1}},
            "hovertemplate": "index %{x:.3f}<br>" + name + ": %{y} channels<extra></extra>",
        }

    return {
        "data": [
            bars("after sparse training", after, "--pruned", "--pruned"),
            bars("before", before, "rgba(0,0,0,0)", "--ink"),
        ],
        "layout": {
            "barmode": "overlay",
            "xaxis": {
                "title": {"text": "sparsity index (0 important, 1 redundant)"},
                "range": [0, (used + 1) / len(after)],
            },
            "yaxis": {"title": {"text": "channels"}, "rangemode": "tozero"},
            "legend": ABOVE,
        },
        "min_width": 0,
    }


def _curves(
    stages: Stages,
    keys: Sequence[tuple[str, str, str]],
    factor: float,
    title: str,
    number_format: str,
    legend: dict[str, Any],
) -> dict[str, Any] | None:
    if not stages:
        return None
    traces = []
    bands, notes = _stage_bands(stages)
    for key, name, dash in keys:
        x: list[int | None] = []
        y: list[float | None] = []
        epoch = 0
        for rows in stages.values():
            for row in rows:
                epoch += 1
                value = row.get(key)
                x.append(epoch)
                y.append(None if value is None else factor * float(value))
            x.append(None)  # a gap: the network is another one in the next stage
            y.append(None)
        colour = "--pruned" if dash == "solid" else "--dense"
        hover = f"%{{y:{number_format}}}<extra>{name}</extra>"
        line = {"color": colour, "width": 2.5 if dash == "solid" else 1.5, "dash": dash}
        points = {"size": 4, "color": colour}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": x,
                "y": y,
                "line": line,
                "marker": points,
                "hovertemplate": hover,
            }
        )
    layout = {
        "xaxis": counting_axis("epoch", epoch),
        "yaxis": {"title": {"text": title}},
        "shapes": bands,
        "annotations": notes,
        "hovermode": "x unified",
        "legend": legend,
    }
    return {"data": traces, "layout": layout, "min_width": 0}


def _stage_bands(stages: Stages) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    bands, notes = [], []
    start = 0.5
    for number, (stage, rows) in enumerate(stages.items()):
        end = start + len(rows)
        place = {"xref": "x", "yref": "paper"}
        if number % 2:  # every second stage is shaded
            box = {"type": "rect", "x0": start, "x1": end, "y0": 0, "y1": 1, "layer": "below"}
            bands.append({**place, **box, "fillcolor": "--band", "line": {"width": 0}})
        text = {"text": stage_name(stage), "showarrow": False, "xanchor": "center", "yanchor": "bottom"}
        notes.append({**place, **text, "x": (start + end) / 2, "y": 1.0, "font": {"color": "--muted", "size": 12}})
        start = end
    return bands, notes
