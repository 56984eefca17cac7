"""What the labels of a finished trace say: which are one channel, which count together, and what each runs through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunus.graph.labels import Numbers, scrambled
from prunus.graph.tape import Tape


@dataclass(frozen=True)
class Layout:
    """Labels joined into *components*, the coupled channels, and these into *bundles*, which count together.

    `component` and `bundle` are numbers by label and by component, and `signature` says what a component runs
    through: two with the same can take each other's place.
    """

    component: Numbers
    bundle: Numbers
    signature: npt.NDArray[np.uint64]

    @property
    def count(self) -> int:
        """Number of components."""
        return len(self.bundle)


def layout_of(tape: Tape) -> Layout:
    """Join the labels of a finished trace."""
    component = _connected(tape.label_count, tape.unions)
    count = int(component.max()) + 1 if len(component) else 0
    ties = [(component[a.numpy()], component[b.numpy()]) for a, b in tape.ties]
    bundle = _connected(count, ties) if ties else np.arange(count)
    signature = np.zeros(count, np.uint64)
    np.add.at(signature, component, tape.features())
    for labels, marks in tape.marks:
        np.add.at(signature, component[labels.numpy()], marks)
    return Layout(component, bundle, signature)


def bundle_signatures(layout: Layout) -> npt.NDArray[np.uint64]:
    """Return a number for every bundle that tells what its components run through together."""
    found = np.zeros(int(layout.bundle.max()) + 1 if layout.count else 0, np.uint64)
    np.add.at(found, layout.bundle, scrambled(layout.signature))
    return found


def _connected(count: int, pairs: list[tuple[Numbers, Numbers]]) -> Numbers:
    first = np.concatenate([np.zeros(0, np.int64), *(a for a, _ in pairs)])
    second = np.concatenate([np.zeros(0, np.int64), *(b for _, b in pairs)])
    graph = coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
