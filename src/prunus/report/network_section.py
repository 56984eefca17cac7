"""The network of a run, drawn with its widths before and after, and what a click on one of its rows says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.report.details import Details, Group, Node
from prunus.report.network_drawing import DrawnNode, draw, hue
from prunus.report.network_panel import coupled, node_panel, touched


def network_section(details: Details) -> dict[str, Any]:
    """Return the drawing, and the data of its panel."""
    return {
        "drawing": draw([_drawn(node) for node in details.nodes]),
        "data": {
            "nodes": [_node(node, details) for node in details.nodes],
            "groups": [_group(number, group) for number, group in enumerate(details.groups)],
        },
    }


def _drawn(node: Node) -> DrawnNode:
    note = ", ".join(node.through if node.kind != "join" else (node.op, *node.through))
    group = node.groups[0][0] if node.groups else -1
    after = node.after if node.groups else None
    return DrawnNode(
        node.kind, node.name or "the network", node.op, node.inputs, node.width, group, node.macs_share, after, note
    )


def _node(node: Node, details: Details) -> dict[str, Any]:
    return node_panel(
        node,
        details.nodes,
        [group.name for group in details.groups],
        details.frozen,
        channels=f"{node.width} → {node.after}" if node.groups else str(node.width),
        macs_label="MACs before",
        always=node.width - sum(count for _, count in node.groups),
    )


def _group(number: int, group: Group) -> dict[str, Any]:
    kept = set(group.keep)
    gone = [channel for channel in range(group.channels) if channel not in kept]
    return {
        "name": group.name,
        "hue": hue(number),
        "facts": [
            ["keeps", f"{len(kept)} of {group.channels} channels"],
            ["removed", spans(gone) or "none"],
            ["threshold", threshold_words(group, gone)],
            ["may keep", group.constraint],
            ["coupled by", [coupled(found.op, found.count, found.first) for found in group.couplings]],
            ["written by", list(group.producers)],
            ["passes", list(group.passes)],
            ["read by", list(group.consumers)],
            ["touches", touched(group.macs_share, group.params_share)],
        ],
        "scores": histogram(group, gone),
    }


def spans(channels: Sequence[int]) -> str:
    """Write numbers that rise, runs of them joined: [1, 2, 3, 7] → "1–3, 7"."""
    parts: list[list[int]] = []
    for channel in channels:
        if parts and channel == parts[-1][1] + 1:
            parts[-1][1] = channel
        else:
            parts.append([channel, channel])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in parts)


def threshold(group: Group, gone: Sequence[int]) -> float | None:
    """Return the score between the removed channels and those that stay; None where no such score is."""
    if group.scores is None or not gone or not group.keep:
        return None
    highest = max(group.scores[channel] for channel in gone)
    lowest = min(group.scores[channel] for channel in group.keep)
    return (highest + lowest) / 2 if highest <= lowest else None


def threshold_words(group: Group, gone: Sequence[int]) -> str:
    """Say where the threshold is, or why there is none."""
    if group.scores is None or not gone:
        return ""
    found = threshold(group, gone)
    return f"{found:.3g}" if found is not None else "none: pieces that stay even have one each"


def histogram(group: Group, gone: Sequence[int]) -> dict[str, Any] | None:
    """Draw how many channels have which score, kept and removed, and the threshold; None without scores."""
    if group.scores is None:
        return None
    low, high = min(group.scores), max(group.scores)
    bins = min(24, max(6, group.channels // 2))
    width = (high - low) / bins or 1.0
    counts = {"kept": [0] * bins, "removed": [0] * bins}
    removed = set(gone)
    for channel, score in enumerate(group.scores):
        counts["removed" if channel in removed else "kept"][min(bins - 1, int((score - low) / width))] += 1
    line = threshold(group, gone)
    shapes = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "--ink", "dash": "dot"}}
        for x in ([] if line is None else [line])
    ]
    return {
        "data": [
            {
                "type": "bar",
                "name": name,
                "x": [low + (number + 0.5) * width for number in range(bins)],
                "y": counts[name],
                "width": width,
                "marker": {"color": colour, "line": {"color": "--surface", "width": 1}},
                "hovertemplate": f"score %{{x:.3g}}: %{{y}} {name}<extra></extra>",
            }
            for name, colour in (("removed", "--dense"), ("kept", "--pruned"))
        ],
        "layout": {
            "barmode": "stack",
            "xaxis": {"title": {"text": "score (higher = keep)"}, "nticks": 5},
            "yaxis": {"title": {"text": "channels"}, "nticks": 4},
            "shapes": shapes,
            "margin": {"l": 40, "r": 8, "t": 24, "b": 40},
            "legend": {"y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        },
    }
