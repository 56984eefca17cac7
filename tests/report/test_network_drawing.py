"""The layout of a network: no two results that are still to be read share a lane, and every line ends at its row."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from prunus.report.network_drawing import ROW, DrawnNode, draw, hue, lanes_of, last_readers


@st.composite
def flows(draw_from: st.DrawFn) -> list[list[int]]:
    rows = draw_from(st.integers(1, 30))
    return [sorted(draw_from(st.sets(st.integers(0, row - 1), max_size=4))) if row else [] for row in range(rows)]


@given(flows())
def test_results_that_are_still_to_be_read_never_share_a_lane(inputs: list[list[int]]) -> None:
    lanes, last = lanes_of(inputs), last_readers(inputs)
    for row, lane in enumerate(lanes):
        for earlier in range(row):
            if last[earlier] > row:
                assert lanes[earlier] != lane, (earlier, row)
    most = max(sum(last[e] > row for e in range(row)) for row in range(len(inputs)))
    assert max(lanes) <= most, "and no more lanes than are needed"


def test_a_residual_stream_stays_straight_and_branches_hang_off_it() -> None:
    block = [[], [0], [1], [0, 2], [3], [4], [3, 5]]
    assert lanes_of(block) == [0, 1, 1, 0, 1, 1, 0]
    shortcut = [[], [0], [1], [0], [2, 3]]
    assert lanes_of(shortcut) == [0, 1, 1, 0, 0]


def drawn(kind: str, name: str, inputs: tuple[int, ...], width: int, group: int, **more: object) -> DrawnNode:
    return DrawnNode(kind, name, str(more.pop("op", "")), inputs, width, group, **more)  # type: ignore[arg-type]


NODES = [
    drawn("input", "input", (), 3, -1),
    drawn("layer", "a", (0,), 8, 0, share=0.2),
    drawn("layer", "b", (1,), 8, 0, share=0.8),
    drawn("join", "sum", (1, 2), 8, 0, op="sum"),
    drawn("layer", "c", (3,), 16, 1, share=0.2, width_after=4),
]


def test_every_edge_is_one_line_from_row_to_row() -> None:
    page = str(draw(NODES))
    paths = re.findall(r'<path d="M([\d.]+) (\d+)(.*?)" ', page)
    assert len(paths) == 5
    ends = [int(re.findall(r"\d+", rest)[-1]) for _, _, rest in paths]
    assert ends == [ROW * row + ROW // 2 for row in (1, 2, 3, 3, 4)]
    starts = [int(y) for _, y, _ in paths]
    assert starts == [ROW * row + ROW // 2 for row in (0, 1, 1, 2, 3)]


def test_size_and_bars_follow_macs_and_widths() -> None:
    page = str(draw(NODES))
    radii = [float(r) for r in re.findall(r' r="([\d.]+)"', page)]
    assert radii[2] > radii[1] == radii[4]
    bars = re.findall(r'class="width" title="(\d+) channels"><i style="width: ([\d.]+)%">', page)
    assert [(int(width), float(bar)) for width, bar in bars] == [(3, 18.8), (8, 50), (8, 50), (8, 50), (16, 100)]
    assert "16 → 4" in page and 'em style="width: 25.0%"' in page, "what is left, within the bar"


def test_neighbouring_groups_have_colours_far_apart() -> None:
    for group in range(50):
        apart = abs(hue(group) - hue(group + 1)) % 360
        assert min(apart, 360 - apart) > 90
