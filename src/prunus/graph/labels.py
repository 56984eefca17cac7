"""What a trace is written in: fields of labels, who owns them, and what earlier traces taught."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prunus.graph.places import Place

Fields = tuple[Tensor, ...]
Numbers = npt.NDArray[np.int64]
Marks = npt.NDArray[np.uint64]
Choices = dict[tuple[str, int, str, frozenset[int]], int]
"""Which axis carries the channels, by mode, call, occasion and the axes that vary."""


class Owner(NamedTuple):
    """A run of labels and the state-dict tensor and axis that they number; no tensor for channels made by padding.

    Where they were numbered in `blocks`, each of these is told apart from the others.
    """

    tensor: str
    axis: int
    start: int
    size: int
    blocks: int = 1


@dataclass(frozen=True)
class Frozen:
    """Labels that must stay, why, and where that was found."""

    labels: Tensor
    reason: str
    op: str
    where: str


Spot = tuple[bool, int, str, int, int]
"""A step of one mode's run (training, number), its inputs or outputs, which of these, and an axis."""


@dataclass
class Hints:
    """What earlier traces of the same network taught: how to take an operation that a line of code calls.

    ``"frozen"`` keeps what it touches, ``"swapped"`` lets channels run along the other axis of a view, ``"tied"`` lets
    stored sizes keep their proportions. `pairs` are axes whose lengths the code takes from one another; `modules` are
    those in which everything is kept, and `deciding` those of them in which a value decides which layers run; `whole`
    says why everything must be kept, if it must.
    """

    taken: dict[tuple[Place, str], set[str]] = field(default_factory=dict)
    pairs: dict[tuple[Place, str], list[tuple[Spot, Spot]]] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    deciding: set[str] = field(default_factory=set)
    whole: list[str] = field(default_factory=list)


def compact(field: Tensor) -> Tensor:
    """Return the field with size 1 along every axis on which it does not vary."""
    for axis, size in enumerate(field.shape):
        if size > 1:
            if field.stride(axis) == 0:
                field = field.narrow(axis, 0, 1)
                continue
            values = field.numpy()
            first = values[(0,) * axis]  # the first of everything before this axis, along it
            if first[0].flat[0] == first[1].flat[0] and (values == values.take([0], axis)).all():
                field = field.narrow(axis, 0, 1)
    return field


def varying(field: Tensor) -> set[int]:
    """Return the axes along which a compact field varies."""
    return {axis for axis, size in enumerate(field.shape) if size > 1}


def scrambled(values: Marks) -> Marks:
    """Spread 64-bit numbers, so that sums of them tell sets apart (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def hashed(key: object) -> np.uint64:
    """Return a 64-bit number for a key, the same all through one process."""
    return np.uint64(hash(key) & 0xFFFFFFFFFFFFFFFF)
