"""Widths whose channels all count together: the smaller network itself says how many may stay where."""

from __future__ import annotations

from collections import Counter
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from prunus.graph.assemble import Assembly
from prunus.graph.labels import Hints
from prunus.graph.layout import bundle_signatures
from prunus.graph.sizes import shaped

if TYPE_CHECKING:
    from prunus.graph.recording import Recording, Runner
    from prunus.graph.repairs import Repairs

STEPS = 16
"""How many widths are tried at most."""


def find_levels(
    model: nn.Module, runner: Runner, recording: Recording, assembly: Assembly, repairs: Repairs, hints: Hints
) -> Assembly:
    """Give the bundles that hold a whole width the counts that narrower networks were seen to have.

    A shuffle of odd halves ties all channels of a stage together. The stage is then made narrower as a whole, and the
    narrow network traced: it has so many channels that run through these layers, so many through those. As many of the
    wide network's may stay.
    """
    tied = {bundle: _unit(assembly, bundle) for bundle in assembly.tied}
    tied = {bundle: unit for bundle, unit in tied.items() if unit > 1}
    if not tied:
        return assembly
    levels: dict[int, list[dict[int, int]]] = {bundle: [_counts(assembly, bundle)] for bundle in tied}
    for step in range(STEPS - 1, 0, -1):
        widths = {b: unit * step // STEPS for b, unit in tied.items() if unit * step // STEPS >= 1}
        found = _try(model, runner, assembly, widths, {b: tied[b] for b in widths}, repairs, hints)
        for bundle, counts in found.items():
            above = levels[bundle][0]
            rising = all(counts[s] <= above[s] for s in counts) and sum(counts.values()) > 0
            if rising and counts != above:
                levels[bundle].insert(0, counts)
    known = {bundle: rows for bundle, rows in levels.items() if len(rows) > 1}
    return Assembly(recording.traced, known) if known else assembly


def _counts(assembly: Assembly, bundle: int) -> dict[int, int]:
    """Count the components of a bundle, and of those that run through the same places and go in its group, by kind."""
    layout = assembly.traced.layout
    kinds = bundle_signatures(layout)
    return dict(Counter(map(int, layout.signature[kinds[layout.bundle] == kinds[bundle]])))


def _unit(assembly: Assembly, bundle: int) -> int:
    """Return into how many equal steps every width that lies in this bundle can be cut."""
    layout = assembly.traced.layout
    sizes = []
    for owner in assembly.traced.tape.owners:
        run = layout.bundle[layout.component[owner.start : owner.start + owner.size]]
        inside = int((run == bundle).sum())
        if inside:
            sizes.append(inside)
    return gcd(*sizes) if sizes else 1


def _try(
    model: nn.Module,
    runner: Runner,
    assembly: Assembly,
    widths: dict[int, int],
    units: dict[int, int],
    repairs: Repairs,
    hints: Hints,
) -> dict[int, dict[int, int]]:
    """Trace the network with these bundles narrower; return how many components of each signature it has."""
    layout, tape = assembly.traced.layout, assembly.traced.tape
    shapes = {name: list(tensor.shape) for name, tensor in assembly.traced.state.tensors.items()}
    for owner in (*tape.owners, *tape.others):
        if not owner.tensor:
            return {}
        run = layout.bundle[layout.component[owner.start : owner.start + owner.size]]
        length = shapes[owner.tensor][owner.axis]
        for bundle, width in widths.items():
            inside = int((run == bundle).sum())
            blocks = owner.size // length if length and owner.size > length else 1
            shapes[owner.tensor][owner.axis] -= (inside - inside // units[bundle] * width) // blocks
        if shapes[owner.tensor][owner.axis] == 1 < length:
            return {}  # an axis of one index has no labels
    graph = assembly.graph()
    if graph.settings or repairs.accepted:
        return {}
    small = shaped(model, {name: tuple(shape) for name, shape in shapes.items()}, graph.keep_all(), ())
    try:
        traced = runner.record(small, hints, tape.choices).traced
    except Exception:  # the network cannot be so narrow
        return {}
    seen = Counter(map(int, traced.layout.signature))
    if seen.keys() - set(map(int, layout.signature)):
        return {}  # it has channels that run where none of the wide network's do
    groups = {int(bundle_signatures(layout)[b]): _counts(assembly, b) for b in widths}
    narrowed = Counter(signature for counts in groups.values() for signature in counts)
    seen.subtract(map(int, layout.signature[~np.isin(layout.bundle, list(widths))]))  # what stays whole
    if any(count != 0 and (count < 0 or narrowed[s] != 1) for s, count in seen.items()):
        return {}  # it would run elsewhere, or nobody can say which group these are of
    return {bundle: {s: seen[s] for s in _counts(assembly, bundle)} for bundle in widths}
