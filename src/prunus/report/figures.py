"""The charts of the page as plain Plotly JSON; colours are names of CSS variables, so that light and dark both fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.folder import Width

Stages = Mapping[str, Sequence[dict[str, Any]]]
_SQUEEZED = 50  # how many times the lowest loss the highest is, until the curve would be flat for most epochs
_ABOVE = {"y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}

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
        chart["layout"]["yaxis"] |= {"type": "log", "title": {"text": "loss (logarithmic)"}, "nticks": 6}
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
            "legend": _ABOVE,
        },
        "min_width": 120 + 17 * len(widths),  # pixels; below that the names would run into each other
    }


def search_chart(metrics: Sequence[dict[str, Any]], dense_macs: int) -> dict[str, Any] | None:
    """Draw what became of the channels, epoch by epoch, and of the MACs; None where there was no search.

    Bars: channels kept (those that came back apart), masked and removed. Lines: the MACs of the channels that are kept,
    and of the network that is trained. All in % of the dense network.
    """
    rows = [row for row in metrics if row.get("kept_channels") is not None and row.get("channels")]
    if not rows:
        return None
    epochs = [row["epoch"] for row in rows]
    bars = [_fates(row) for row in rows]
    colours = {"kept": "--pruned", "came back": "--good", "masked": "--dense", "removed": "--dense-soft"}
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": fate,
            "x": epochs,
            "y": [100 * fates[fate] / row["channels"] for fates, row in zip(bars, rows, strict=True)],
            "customdata": [fates[fate] for fates in bars],
            "marker": {"color": colour},
            "hovertemplate": f"%{{customdata}} (%{{y:.1f}} %)<extra>{fate}</extra>",
        }
        for fate, colour in colours.items()
    ]
    for key, name, dash in (("macs", "MACs kept", "solid"), ("trained_macs", "MACs trained", "dot")):
        shares = [100 * row[key] / dense_macs if row.get(key) else None for row in rows]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": epochs,
                "y": shares,
                "line": {"color": "--ink", "width": 2, "dash": dash},
                "marker": {"size": 4, "color": "--ink"},
                "hovertemplate": f"%{{y:.1f}} %<extra>{name}</extra>",
            }
        )
    layout = {
        "barmode": "stack",
        "bargap": 0.2,
        "xaxis": {"title": {"text": "epoch of the search"}, "rangemode": "nonnegative"},
        "yaxis": {"title": {"text": "% of the dense network"}, "rangemode": "tozero"},
        "hovermode": "x unified",
        "legend": _ABOVE,
    }
    return {"data": traces, "layout": layout, "min_width": 0}


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
            "legend": _ABOVE,
        },
        "min_width": 0,
    }


def _fates(row: dict[str, Any]) -> dict[str, int]:
    """Share the channels of one epoch out: they add up to all."""
    kept, back, gone = (int(row.get(f"{what}_channels") or 0) for what in ("kept", "returned", "removed"))
    return {
        "kept": kept - back,
        "came back": back,
        "masked": int(row["channels"]) - kept - gone,
        "removed": gone,
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
        "xaxis": {"title": {"text": "epoch"}, "rangemode": "nonnegative"},
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
