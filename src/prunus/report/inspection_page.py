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
from prunus.report.network_panel import coupled, node_panel, percent, touched

if TYPE_CHECKING:
    from prunus.inspection import GroupRow, Inspection, NodeRow


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
        "macs_share": percent(row.macs_share),
        "params_share": percent(row.params_share),
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
        "couplings": [coupled(coupling.op, coupling.count, coupling.first) for coupling in row.couplings],
        "producers": row.producers,
        "passes": row.passes,
        "consumers": row.consumers,
        "touches": touched(row.macs_share, row.params_share),
        "half": [
            f"keeps {half.kept} of {row.channels}",
            f"{numbers.count(half.macs)} MACs ({_part(half.macs, found.cost.macs)})",
            f"{numbers.count(half.params)} parameters ({_part(half.params, found.cost.params)})",
            numbers.size(half.size_bytes),
        ],
    }


def _node_data(node: NodeRow, found: Inspection) -> dict[str, Any]:
    names = [row.name for row in found.groups]
    panel = node_panel(
        node, found.nodes, names, found.frozen, channels=str(node.width), macs_label="MACs", always=node.kept
    )
    return {"kind": node.kind, **panel}


def _part(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "–"
