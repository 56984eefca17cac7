"""The charts of a search while a network trains: what became of its channels, epoch by epoch and group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prunus.report.figures import ABOVE, counting_axis, plain

_ROW = 16  # pixels of a group in the chart of all groups, where there are few
_NAMED_ROW = 11  # pixels that a name takes at least
_PALEST = 50  # % kept that may be drawn as palest, where no group has less: else all would look alike
_NUMBERED = 16  # epochs at most
_SHORTEST_BAR, _LONGEST_BAR = 90, 240  # pixels of the colours' key
_TALLEST = 1400  # pixels that the groups get together, as long as every one still has a few


class _Groups(BaseModel):
    """What an epoch's choice left of every group: counts of channels in the order of the first epoch's names."""

    model_config = ConfigDict(frozen=True)

    name: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    kept: tuple[int, ...]
    returned: tuple[int, ...]
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Moved:
    """The groups of a search, and every epoch's number with what it left of them."""

    names: tuple[str, ...]
    channels: tuple[int, ...]
    epochs: tuple[tuple[int, _Groups], ...]


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
        "xaxis": counting_axis("epoch of the search", max(epochs)),
        "yaxis": {"title": {"text": "% of the dense network"}, "rangemode": "tozero"},
        "hovermode": "x unified",
        "legend": ABOVE,
    }
    return {"data": traces, "layout": layout, "min_width": 0}


def groups_chart(metrics: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Draw which share of every group each epoch of a search kept, and where channels came back.

    Rows are groups, from the network's input down, and columns are epochs. None where there was no search, or where an
    earlier Prunus ran, which counted all channels together.
    """
    moved = _moved(metrics)
    if moved is None:
        return None
    epochs = [epoch for epoch, _ in moved.epochs]
    rows = range(len(moved.names))
    back = [(epoch, row) for epoch, found in moved.epochs for row in rows if found.returned[row]]
    height = max(_NAMED_ROW - 3, min(_ROW, _TALLEST // len(rows)))
    named = rows if height >= _NAMED_ROW else rows[::2]
    shares = [[100 * found.kept[row] / moved.channels[row] for _, found in moved.epochs] for row in rows]
    heat = {
        "type": "heatmap",
        "name": "kept",
        "x": epochs,
        "y": list(rows),
        "z": [[round(share, 1) for share in line] for line in shares],
        "text": [[_fate(moved, row, found) for _, found in moved.epochs] for row in rows],
        "colorscale": [[0, "--band"], [1, "--pruned"]],
        "zmin": min(_PALEST, 10 * int(min(map(min, shares)) // 10)),
        "zmax": 100,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "title": {"text": "kept"},
            "ticksuffix": " %",
            "nticks": 5,
            "thickness": 10,
            "outlinewidth": 0,
            "len": max(_SHORTEST_BAR, min(_LONGEST_BAR, height * len(rows))),
            "lenmode": "pixels",
            "y": 1,
            "yanchor": "top",
            "ypad": 0,
        },
        "hovertemplate": "%{text}<extra></extra>",
    }
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "channels came back",
        "x": [epoch for epoch, _ in back],
        "y": [row for _, row in back],
        "marker": {"size": 7, "color": "--surface", "line": {"color": "--ink", "width": 1.5}},
        "hoverinfo": "skip",
        "showlegend": True,
    }
    layout = {
        "xaxis": {
            "title": {"text": "epoch of the search"},
            "showgrid": False,
            "range": [epochs[0] - 0.5, epochs[-1] + 0.5],
            "tickvals": epochs[:: 1 + (len(epochs) - 1) // _NUMBERED],
        },
        "yaxis": {
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "tickvals": list(named),
            "ticktext": [plain(moved.names[row]) for row in named],
            "tickfont": {"size": min(11, height)},
        },
        "hovermode": "closest",
        "legend": ABOVE,
    }
    return {
        "data": [heat, *([marks] if back else [])],
        "layout": layout,
        "min_width": 0,
        "height": 110 + height * len(rows),
    }


def _moved(metrics: Sequence[Mapping[str, Any]]) -> _Moved | None:
    """Gather what a search left of every group; None where it is not recorded, or does not fit together."""
    try:
        found = {int(row["epoch"]): _Groups.model_validate(row["groups"]) for row in metrics if "groups" in row}
    except ValidationError:
        return None
    if not found or not found[min(found)].name:
        return None
    first = found[min(found)]
    count = len(first.name)
    lists = [first.channels, *(counts for groups in found.values() for counts in (groups.kept, groups.returned))]
    if any(len(counts) != count for counts in lists) or not all(first.channels):
        return None
    return _Moved(first.name, first.channels, tuple(sorted(found.items())))


def _fate(moved: _Moved, row: int, found: _Groups) -> str:
    """Say what an epoch left of a group: "layer1.0.conv1: 9 of 16 kept, 2 of them back, 4 masked, 3 removed"."""
    kept, back, whole = found.kept[row], found.returned[row], moved.channels[row]
    gone = found.removed[row] if row < len(found.removed) else 0
    parts = [f"{kept} of {whole} kept"]
    parts += [f"{back} of them came back"] if back else []
    parts += [f"{whole - kept - gone} masked"] if whole > kept + gone else []
    parts += [f"{gone} removed"] if gone else []
    return f"{plain(moved.names[row])}<br>{', '.join(parts)}"


def _fates(row: dict[str, Any]) -> dict[str, int]:
    """Share the channels of one epoch out: they add up to all."""
    kept, back, gone = (int(row.get(f"{what}_channels") or 0) for what in ("kept", "returned", "removed"))
    return {
        "kept": kept - back,
        "came back": back,
        "masked": int(row["channels"]) - kept - gone,
        "removed": gone,
    }
