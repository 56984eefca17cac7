"""The widths that each group may have, and the order in which an allocation climbs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from prunus.cost import CostTable, Counts
from prunus.graph.channels import ChannelGroup, Ids

Scope = Literal["global", "local"]
Floats = npt.NDArray[np.float64]

DEFAULT_FLOOR = 10
"""Without `min_channels` every group keeps one channel in so many, rounded up."""


@dataclass(frozen=True)
class Ladder:
    """One group's possible widths.

    `ids` are its channels and `scores` theirs, best first; `levels` the counts that it may keep, rising: the first is
    its floor, the last usually its size. From each level to the next leads a *rung*.
    """

    group: ChannelGroup
    ids: Ids
    scores: Floats
    levels: Counts

    def rung_scores(self) -> Floats:
        """Return the mean score of the channels that each rung adds, (levels − 1,), never rising."""
        if len(self.levels) < 2:
            return np.zeros(0)
        sums = np.add.reduceat(self.scores[: self.levels[-1]], self.levels[:-1])
        return np.minimum.accumulate(sums / np.diff(self.levels))


def ladder_of(group: ChannelGroup, scores: Floats, min_channels: int | None, round_to: int) -> Ladder:
    """Build a group's ladder: multiples of `round_to` from its floor on, and its whole size.

    Where the group lies in pieces, every level takes the best channels of each.
    """
    floor = -(-group.size // DEFAULT_FLOOR) if min_channels is None else min_channels
    order = np.argsort(-scores, kind="stable")
    if group.levels is None:
        lowest = -(-floor // round_to) * round_to
        levels = [*range(lowest, group.size + 1, round_to)]
    else:
        order = _by_level(group, order)
        totals = group.levels.sum(axis=1)
        levels = [int(total) for total in totals if total >= floor and total % round_to == 0]
    if not levels or levels[-1] != group.size:
        levels.append(group.size)
    return Ladder(group, group.channels[order], scores[order], np.array(levels, np.int64))


def _by_level(group: ChannelGroup, order: Ids) -> Ids:
    """Put channels, best first, in the order in which the levels of a group in pieces take them."""
    assert group.levels is not None
    pieces = group.piece_of[order]
    place = np.zeros(len(order), np.int64)  # the place of each channel within its piece
    for piece in range(group.levels.shape[1]):
        inside = pieces == piece
        place[inside] = np.arange(inside.sum())
    level = np.array([np.searchsorted(group.levels[:, p], n, side="right") for p, n in zip(pieces, place, strict=True)])
    return order[np.argsort(level, kind="stable")]


class Rungs:
    """All rungs of all ladders, numbered ladder by ladder, with what each adds.

    `groups` is the ladder that each belongs to, `sizes` the channels that it adds, `widths` what it adds to the sums of
    a CostTable. `base` and `base_count` are what all floors together have of them.
    """

    def __init__(self, ladders: list[Ladder], table: CostTable) -> None:
        self.ladders = ladders
        kept = np.ones(table.occurrences.shape[1], np.int64)
        for ladder in ladders:
            kept[ladder.ids[ladder.levels[0] :]] = 0
        self.base: Counts = table.occurrences @ kept
        self.base_count = sum(int(ladder.levels[0]) for ladder in ladders)
        self.groups = np.repeat(np.arange(len(ladders)), [len(ladder.levels) - 1 for ladder in ladders])
        self.sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(ladder.levels) for ladder in ladders)])
        rows = [_rung_widths(ladder, table) for ladder in ladders]
        self.widths = np.concatenate([np.zeros((0, len(self.base)), np.int64), *rows])

    def order(self, scope: Scope) -> Ids:
        """Return the rungs in the order in which they are climbed; those of one ladder stay in theirs."""
        shares = np.concatenate([np.zeros(0), *(ladder.levels[1:] / ladder.group.size for ladder in self.ladders)])
        if scope == "local":
            return np.lexsort((self.groups, shares))
        scores = np.concatenate([np.zeros(0), *(ladder.rung_scores() for ladder in self.ladders)])
        return np.lexsort((self.groups, shares, -scores))


def _rung_widths(ladder: Ladder, table: CostTable) -> Counts:
    """Return what each rung of one ladder adds to the table's sums, (levels − 1, widths)."""
    sums = np.cumsum(table.occurrences[:, ladder.ids], axis=1)[:, ladder.levels - 1]
    steps: Counts = np.diff(sums, axis=1).T
    return steps
