"""The widths that each group may have, and the order in which an allocation climbs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from prunus.cost import Counts
from prunus.graph.channels import ChannelGroup, Ids, Keep

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

    Where the group lies in pieces, every level takes the best channels of each. One that is dropped has a single level,
    the lowest.
    """
    floor = -(-group.size // DEFAULT_FLOOR) if min_channels is None else min_channels
    order = np.argsort(-scores, kind="stable")
    if group.levels is None:
        lowest = -(-floor // round_to) * round_to
        levels = list(range(lowest, group.size + 1, round_to))
    else:
        order = _by_level(group, order)
        totals = group.levels.sum(axis=1)
        levels = [int(total) for total in totals if total >= floor and total % round_to == 0]
    if group.dropped:
        return Ladder(group, group.channels[order], scores[order], group.counts[:1].sum(axis=1))
    if not levels or levels[-1] != group.size:
        levels.append(group.size)
    return Ladder(group, group.channels[order], scores[order], np.array(levels, np.int64))


def _by_level(group: ChannelGroup, order: Ids) -> Ids:
    """Put channels, best first, in the order in which the levels of a group in pieces take them."""
    assert group.levels is not None
    pieces = group.piece_of[order]
    inside = np.split(np.argsort(pieces, kind="stable"), np.cumsum(np.bincount(pieces))[:-1])
    level = np.zeros(len(order), np.int64)
    for piece, places in enumerate(inside):
        level[places] = np.searchsorted(group.levels[:, piece], np.arange(len(places)), side="right")
    return order[np.argsort(level, kind="stable")]


class Rungs:
    """All rungs of all ladders, numbered ladder by ladder, with what each adds.

    `groups` is the ladder that each belongs to, `sizes` how many channels it adds, `channels` which, rung after rung.
    `base_count` is how many channels all floors together have.
    """

    def __init__(self, ladders: list[Ladder]) -> None:
        self.ladders = ladders
        empty = np.zeros(0, np.int64)
        self.base_count = sum(int(ladder.levels[0]) for ladder in ladders)
        self.groups = np.repeat(np.arange(len(ladders)), [len(ladder.levels) - 1 for ladder in ladders])
        self.sizes = np.concatenate([empty, *(np.diff(ladder.levels) for ladder in ladders)])
        above = (ladder.ids[ladder.levels[0] : ladder.levels[-1]] for ladder in ladders)
        self.channels = np.concatenate([empty, *above])
        self._starts = np.append(0, np.cumsum(self.sizes))

    def floors(self, keep: Keep) -> Keep:
        """Return `keep` without the channels above the floors."""
        keep = keep.copy()
        for ladder in self.ladders:
            keep[ladder.ids[ladder.levels[0] :]] = False
        return keep

    def added(self, rung: int) -> Ids:
        """Return the channels that one rung adds."""
        return self.channels[self._starts[rung] : self._starts[rung + 1]]

    def order(self, scope: Scope, targets: Floats | None = None) -> Ids:
        """Return the rungs in the order in which they are climbed; those of one ladder stay in theirs.

        With `targets`, a number a ladder, the widths grow in these proportions, whatever the scope.
        """
        sizes = [ladder.group.size for ladder in self.ladders] if targets is None else targets
        above = (ladder.levels[1:] / size for ladder, size in zip(self.ladders, sizes, strict=True))
        shares = np.concatenate([np.zeros(0), *above])
        if scope == "local" or targets is not None:
            return np.lexsort((self.groups, shares))
        scores = np.concatenate([np.zeros(0), *(ladder.rung_scores() for ladder in self.ladders)])
        return np.lexsort((self.groups, shares, -scores))
