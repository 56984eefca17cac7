"""Where a network moves channels about, the smaller one is asked in which order it wants them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError
from prunus.graph.channels import ChannelGraph, Ids, Keep
from prunus.graph.layout import Layout
from prunus.graph.recording import Runner
from prunus.graph.sizes import shrunk
from prunus.graph.uses import runs_of

Kept = tuple[tuple[int, ...], dict[int, Ids], Tensor | None]
"""What stays of a tensor: its shape, the indices along single axes, and those along axis 1, row by row."""


def kept_runs(model: nn.Module, graph: ChannelGraph, keep: Keep) -> dict[str, Kept]:
    """Return which indices of every tensor stay, in the order in which the smaller network uses them.

    The smaller network is traced, and each of its channels takes the place of one of the original that runs through
    the same layers: the k-th of the k-th that stays.

    Raises:
        SurgeryError: the smaller network's channels do not run as those that are kept.
    """
    assert graph.order is not None and graph.runner is not None
    runner: Runner = graph.runner
    small = shrunk(model, graph, keep, graph.settings, is_meta=runner.is_meta)
    traced = runner.record(small, *graph.hints).traced
    match = _matched(graph, keep, traced.layout)
    found: dict[str, Kept] = {}
    small_runs = runs_of(traced)
    for name, labelled in graph.tensors.items():
        shape = labelled.kept_shape(keep)
        rows: dict[int, Ids] = {}
        columns = None
        for wide, narrow in _pairs(graph.order.runs[name], small_runs[name]):
            axes = [axis for axis, size in enumerate(wide.shape) if size > 1]
            axis = axes[-1]
            if len(axes) == 1:
                chosen = match[narrow.reshape(-1)] if narrow.size > 1 else np.full(shape[axis], -1)
                rows[axis] = _places(wide.reshape(-1), _completed(chosen, wide.reshape(-1), graph, keep))
            else:
                columns = (wide, narrow)
        index = None if columns is None else _columns(*columns, match, rows.get(0), labelled.shape)
        found[name] = (
            shape,
            {a: r for a, r in rows.items() if len(r) < labelled.shape[a] or (np.diff(r) < 0).any()},
            index,
        )
    return found


def _pairs(wide: tuple[Ids, ...], narrow: tuple[Ids, ...]) -> list[tuple[Ids, Ids]]:
    """Match the fields of a tensor in the two networks by the axes that they vary along."""
    by_axes = {tuple(a for a, n in enumerate(own.shape) if n > 1): own for own in narrow}
    pairs: list[tuple[Ids, Ids]] = []
    for own in wide:
        axes = tuple(axis for axis, size in enumerate(own.shape) if size > 1)
        other = by_axes.get(axes)
        pairs.append((own, np.zeros((1,) * own.ndim, np.int64) if other is None else other))
    return pairs


def _completed(chosen: Ids, run: Ids, graph: ChannelGraph, keep: Keep) -> Ids:
    """Fill in, in order, what else stays along a run: the smaller network does not label an axis of one index."""
    assert graph.order is not None
    missing = np.flatnonzero(chosen < 0)
    if not len(missing):
        return chosen
    left = Counter(run[keep[graph.order.ids[run]]].tolist())
    left.subtract(chosen[chosen >= 0].tolist())
    rest = [component for component in run.tolist() if left[component] > 0 and not left.subtract([component])]
    if len(rest) != len(missing):
        raise SurgeryError("the smaller network uses other channels than those that stay.")
    chosen = chosen.copy()
    chosen[missing] = rest
    return chosen


def _matched(graph: ChannelGraph, keep: Keep, small: Layout) -> Ids:
    """Return, for every component of the smaller network, the one of the original that it stands for."""
    order = graph.order
    assert order is not None
    alive = np.flatnonzero(keep[order.ids])
    wide = alive[np.argsort(order.signatures[alive], kind="stable")]
    narrow = np.argsort(small.signature, kind="stable")
    common = np.isin(order.signatures[wide], small.signature)
    wide = wide[common]
    match = np.full(small.count, -1, np.int64)
    seen = np.isin(small.signature[narrow], order.signatures[wide])
    narrow = narrow[seen]
    if len(wide) != len(narrow) or not np.array_equal(order.signatures[wide], small.signature[narrow]):
        raise SurgeryError(
            "the smaller network uses other channels than those that stay; its widths do not go together. Keep as many "
            "in every piece of a group as group.counts allows."
        )
    match[narrow] = wide
    return match


def _places(run: Ids, chosen: Ids) -> Ids:
    """Return where along a run the chosen components lie; the k-th time that one is chosen, its k-th place."""
    by_component = np.argsort(run, kind="stable")
    starts = np.searchsorted(run[by_component], chosen)
    order = np.argsort(chosen, kind="stable")
    repeats = np.zeros(len(chosen), np.int64)
    sorted_chosen = chosen[order]
    first = np.concatenate([[0], np.flatnonzero(np.diff(sorted_chosen)) + 1]) if len(chosen) else np.zeros(0, np.int64)
    group = np.zeros(len(chosen), np.int64)
    group[first] = first
    repeats[order] = np.arange(len(chosen)) - np.maximum.accumulate(group)
    places: Ids = by_component[np.minimum(starts + repeats, len(run) - 1)]
    if not np.array_equal(run[places], chosen):
        raise SurgeryError("the smaller network uses a channel more often than the original does.")
    return places


def _columns(wide: Ids, narrow: Ids, match: Ids, rows: Ids | None, shape: tuple[int, ...]) -> Tensor:
    """Return the kept indices along axis 1, row by row."""
    full = np.broadcast_to(wide.reshape(wide.shape[0], wide.shape[1]), (shape[0], wide.shape[1]))
    kept = full if rows is None else full[rows]
    small = narrow.reshape(narrow.shape[0], narrow.shape[1])
    small = np.broadcast_to(small, (len(kept), small.shape[1]))
    found = [_places(own, match[other]) for own, other in zip(kept, small, strict=True)]
    return torch.from_numpy(np.stack(found))
