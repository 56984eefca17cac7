"""The page of an inspection: the network drawn, its groups, and why the rest stays whole, in one HTML file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from prunus.files import atomic_write_text
from prunus.report import numbers
from prunus.report.network_drawing import DrawnNode, draw, hue

if TYPE_CHECKING:
    from prunus.inspecting import GroupRow, Inspection, NodeRow

_WHAT = {"input": "input of the network", "layer": "layer", "join": "join", "cut": "cut into parts"}


def write_inspection(found: Inspection, path: Path | str) -> Path:
    """Write the page of an inspection, atomically, and return its path."""
    atomic_write_text(Path(path), render_inspection(found))
    return Path(path)


def render_inspection(found: Inspection) -> str:
    """Render the page: HTML with its style, its script and the drawing in it; it asks for nothing from outside."""
    assets = resources.files("prunus.report") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["whole_percent"] = lambda share: f"{100 * share:.0f}\u00a0%"
    environment.globals["hue"] = hue
    style = "\n".join(
        (assets / f"{name}.css").read_text("utf-8") for name in ("page", "network", "explore", "inspection")
    )
    return environment.from_string((assets / "inspection.html.jinja").read_text("utf-8")).render(
        found=found,
        shapes=", ".join("×".join(map(str, shape)) for shape in found.input_shapes),
        cards=_cards(found),
        groups=[_group_line(row, found) for row in found.groups],
        network=draw([_drawn(node) for node in found.nodes]),
        data={
            "nodes": [_node_data(node, found) for node in found.nodes],
            "groups": [_group_data(number, row, found) for number, row in enumerate(found.groups)],
        },
        style=Markup(style),
        script=Markup("\n".join((assets / f"{name}.js").read_text("utf-8") for name in ("walk", "inspection"))),
    )


def _drawn(node: NodeRow) -> DrawnNode:
    note = ", ".join(node.through) if node.kind != "join" else ", ".join((node.op, *node.through))
    group = node.groups[0][0] if node.groups else -1
    return DrawnNode(
        node.kind, node.name or "the network", node.op, node.inputs, node.width, group, node.macs_share, note=note
    )


def _cards(found: Inspection) -> list[dict[str, str]]:
    cards = []
    for label, name, form in (
        ("parameters", "params", numbers.count),
        ("MACs", "macs", numbers.count),
        ("bytes", "size_bytes", numbers.size),
    ):
        whole, half, smallest = (getattr(cost, name) for cost in (found.cost, found.half, found.smallest))
        left = half / whole if whole else 1.0
        cards.append(
            {
                "label": label,
                "value": form(whole),
                "half": form(half),
                "smallest": form(smallest),
                "left": f"{100 * left:.1f}\u00a0%",
                "left_percent": f"{100 * left:.1f}",
            }
        )
    return cards


def _group_line(row: GroupRow, found: Inspection) -> dict[str, Any]:
    return {
        "name": row.name,
        "channels": row.channels,
        "constraint": row.constraint,
        "coupled": ", ".join(f"{coupling.op} ×{coupling.count}" for coupling in row.couplings) or "–",
        "macs_share": _percent(row.macs_share),
        "params_share": _percent(row.params_share),
        "half_macs": _part(row.half.macs, found.cost.macs),
        "half_params": _part(row.half.params, found.cost.params),
        "half_bytes": numbers.size(row.half.size_bytes),
    }


def _group_data(number: int, row: GroupRow, found: Inspection) -> dict[str, Any]:
    half = row.half
    return {
        "name": row.name,
        "hue": hue(number),
        "channels": str(row.channels),
        "constraint": row.constraint,
        "couplings": [
            f"{coupling.op} in {coupling.first or 'the network'}"
            + (f" and {coupling.count - 1} more" if coupling.count > 1 else "")
            for coupling in row.couplings
        ],
        "producers": row.producers,
        "passes": row.passes,
        "consumers": row.consumers,
        "touches": f"{_percent(row.macs_share)} of the MACs, {_percent(row.params_share)} of the parameters",
        "half": [
            f"keeps {half.kept} of {row.channels}",
            f"{numbers.count(half.macs)} MACs ({_part(half.macs, found.cost.macs)})",
            f"{numbers.count(half.params)} parameters ({_part(half.params, found.cost.params)})",
            numbers.size(half.size_bytes),
        ],
    }


def _node_data(node: NodeRow, found: Inspection) -> dict[str, Any]:
    what = node.op if node.kind in ("layer", "join") else _WHAT[node.kind]
    facts = [["channels", str(node.width)]]
    if node.kind == "layer":
        facts.append(["MACs", f"{numbers.count(node.macs)} ({_percent(node.macs_share)})"])
    if node.through:
        facts.append(["then", ", ".join(node.through)])
    facts.append(["reads", ", ".join(found.nodes[source].name or "the network" for source in node.inputs)])
    names = [found.groups[number].name for number, _ in node.groups]
    return {
        "kind": node.kind,
        "name": node.name or "the network",
        "what": what,
        "facts": facts,
        "groups": node.groups,
        "whole": _whole(node, found),
        "text": " ".join([node.name, node.op, *node.through, *names]).lower(),
    }


def _whole(node: NodeRow, found: Inspection) -> str:
    """Say why channels of a node's result stay, as far as a reason names it."""
    if node.kind == "input":
        return "The channels of an input are given."
    if not node.kept:
        return ""
    for row in found.frozen:
        if row.tensor.rpartition(".")[0] == node.name:
            by = ", ".join(part for part in (row.op, row.where) if part)
            return f"{row.channels} channels: {row.reason}" + (f" ({by})" if by else "")
    return f"{node.kept} of its {node.width} channels always stay."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _part(part: int, whole: int) -> str:
    return _percent(part / whole) if whole else "–"
