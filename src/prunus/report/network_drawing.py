"""A network drawn top-down: a row for every layer, sum and concatenation, and a line for every result that is read.

Every row has a lane; a result holds its lane from the row that makes it to the last one that reads it, so that lines
never run over one another: a residual stream stays straight, and the branches hang off it. Layout takes one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from math import sqrt

import jinja2
from markupsafe import Markup

ROW = 34  # pixels; large enough for a finger
_WIDEST = 190  # pixels for all lanes together; many lanes move closer
_PITCH = 24

SYMBOLS = {"sum": "+", "product": "×", "difference": "−", "concatenation": "∪", "cut": "÷"}


@dataclass(frozen=True)
class DrawnNode:
    """One row: what it is called, which rows it reads, and how wide it is.

    `kind` is input, layer, join or cut; `op` names a join's operation; `group` colours it, −1 where nothing of it can
    go; `share` is its part of the MACs, 0 to 1; `width_after` its channels once it is pruned, None if not known.
    """

    kind: str
    name: str
    op: str
    inputs: tuple[int, ...]
    width: int
    group: int
    share: float = 0.0
    width_after: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """The path of one result to a row that reads it, as an SVG path, its group's colour, and the rows that it is in."""

    path: str
    group: int
    first: int
    last: int


def lanes_of(inputs: Sequence[Sequence[int]]) -> list[int]:
    """Return the lane of every row; two results that are still to be read never share one.

    Args:
        inputs: for every row the numbers of the earlier rows that it reads.
    """
    last = last_readers(inputs)
    lanes: list[int] = []
    held: dict[int, int] = {}  # lane → row whose result it holds
    for row, sources in enumerate(inputs):
        ending = [lanes[source] for source in sources if last[source] == row]
        for lane in ending:
            held.pop(lane, None)
        lanes.append(min(ending) if ending else next(lane for lane in range(len(held) + 1) if lane not in held))
        if last[row] > row:
            held[lanes[-1]] = row
    return lanes


def last_readers(inputs: Sequence[Sequence[int]]) -> list[int]:
    """Return for every row the last that reads it; itself if none does."""
    last = list(range(len(inputs)))
    for row, sources in enumerate(inputs):
        for source in sources:
            last[source] = max(last[source], row)
    return last


def hue(group: int) -> int:
    """Return the hue of a group, in degrees: neighbours are far apart, however many groups there are."""
    return round(group * 137.508 + 340) % 360


def draw(nodes: Sequence[DrawnNode]) -> Markup:
    """Draw a network as an HTML fragment: rows that can be clicked and walked through by keyboard, over an SVG."""
    lanes = lanes_of([node.inputs for node in nodes])
    pitch = min(_PITCH, _WIDEST / max(1, max(lanes, default=0)))
    xs = [round(16 + lane * pitch, 1) for lane in lanes]
    widest = max((node.width for node in nodes), default=1)
    largest = max((node.share for node in nodes), default=0.0) or 1.0
    rows = [
        {
            "node": node,
            "x": x,
            "y": ROW * number + ROW // 2,
            "radius": round(4.5 + 6.5 * sqrt(node.share / largest), 1) if node.kind == "layer" else 8,
            "symbol": SYMBOLS.get(node.op, "∘") if node.kind in ("join", "cut") else "",
            "bar": round(100 * node.width / widest, 1),
            "bar_after": None if node.width_after is None else round(100 * node.width_after / widest, 1),
            "share": round(100 * node.share / largest, 1),
        }
        for number, (node, x) in enumerate(zip(nodes, xs, strict=True))
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.globals["hue"] = hue
    template = environment.from_string((resources.files("prunus.report") / "assets" / "network.html.jinja").read_text())
    width = round(32 + max(lanes, default=0) * pitch)
    return Markup(template.render(rows=rows, lines=_lines(nodes, xs), width=width, height=ROW * len(nodes), row=ROW))


def _lines(nodes: Sequence[DrawnNode], xs: Sequence[float]) -> list[Line]:
    """Draw every result's line down its lane to the last row that reads it, and a branch to each of the others."""
    last = last_readers([node.inputs for node in nodes])
    lines = []
    for row, node in enumerate(nodes):
        for source in node.inputs:
            start = source if last[source] == row else row - 1
            path = _path(xs[source], _middle(start), xs[row], _middle(row))
            lines.append(Line(path, nodes[source].group, start, row))
    return lines


def _path(x: float, y: int, to_x: float, to_y: int) -> str:
    """Go straight down, and cross over to the other lane within the last row."""
    if x == to_x:
        return f"M{x} {y}V{to_y}"
    bend = to_y - ROW
    down = f"V{bend}" if bend > y else ""
    return f"M{x} {y}{down}C{x} {to_y - ROW // 3} {to_x} {bend + ROW // 3} {to_x} {to_y}"


def _middle(row: int) -> int:
    return ROW * row + ROW // 2
