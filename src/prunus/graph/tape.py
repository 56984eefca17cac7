"""The labels of one trace: which tensor carries which, which of them are the same channel, and which may not go.

A *label* is an integer that stands for one index of one axis of one parameter. A *label field* is an int64 tensor with
the rank of the tensor that it describes and size 1 along every axis on which it does not vary. −1 is "no label": a
position whose size the network fixes.

Labels are related in two ways. *United* labels are the same channel. *Tied* labels only count alike: as many must stay
in one piece of a tensor as in the others, whichever these are. A *mark* says which piece a label lies in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from math import gcd

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunus.graph.labels import (
    Choices,
    Fields,
    Frozen,
    Hints,
    Marks,
    Numbers,
    Owner,
    compact,
    hashed,
    scrambled,
    varying,
)
from prunus.graph.places import Place, place_of_call


class Tape:
    """Everything that a trace writes down while the model runs on labels."""

    def __init__(self, hints: Hints | None = None, guide: Choices | None = None) -> None:
        self.hints = hints or Hints()
        self.guide = guide or {}
        self.choices: Choices = {}
        self.owners: list[Owner] = []
        self.others: list[Owner] = []
        self.unions: list[tuple[Numbers, Numbers]] = []
        self.ties: list[tuple[Tensor, Tensor]] = []
        self.tied_at: list[tuple[str, str]] = []
        self.marks: list[tuple[Tensor, Marks]] = []
        self.frozen: list[Frozen] = []
        self.modules: list[tuple[str, nn.Module]] = []
        self.columns: list[tuple[int, int]] = []
        self.steps: list[tuple[int, int, int]] = []
        self.uniform: dict[int, tuple[Tensor, frozenset[int]]] = {}
        self.parents: dict[int, tuple[Tensor, Tensor, dict[int, Tensor]]] = {}
        self.sizes: list[tuple[str, str, Tensor]] = []  # attributes of modules, and the labels that each counts
        self.fixed: list[tuple[int, int]] = []  # runs of labels that number positions whose number is fixed
        self.reorders = False
        self.is_risky = False
        self.splits: dict[tuple[Place, str], list[Tensor]] = {}
        self.given: list[int] | None = None
        self.op = ""
        self.mode = ""
        self.calls = 0
        self._starts: list[int] = []
        self._next = 0
        # A tensor is known by its id; keeping it alive keeps the id its own (meta tensors hold no memory).
        self._fields: dict[int, tuple[Tensor, Fields]] = {}

    def hinted(self, how: str) -> bool:
        """Say whether an earlier trace found that the operation at hand must be taken so."""
        return bool(self.hints.taken) and how in self.hints.taken.get((place_of_call(), self.op), ())

    def main_axis(self, own: Tensor, axes: Iterable[int]) -> int:
        """Return the axis that carries the channels of a field that was just laid out along several.

        It is the longest, or the next longest where that was found to be wrong; in a smaller network, where it may be
        gone, the wide network's.
        """
        key = (self.mode, self.calls, "view", frozenset[int]())
        ranked = sorted(axes, key=lambda axis: (own.shape[axis], axis))
        chosen = self.guide.get(key, ranked[-2] if self.hinted("swapped") and len(ranked) > 1 else ranked[-1])
        self.choices[key] = chosen
        return chosen

    def carrier(self, own: Tensor, axes: Iterable[int] | None = None) -> int:
        """Return the axis that a field's channels run along: the longest, of equally long ones the last.

        In a smaller network, another axis may be longer; it is told by the choices of the wide one.
        """
        ranked = sorted(varying(own) if axes is None else axes, key=lambda axis: (own.shape[axis], axis))
        if not ranked:
            return own.dim() - 1
        if self.steps and len(ranked) > 1 and (axis := self._known_axis(own, ranked)) is not None:
            return axis
        key = (self.mode, self.calls, self.op, frozenset(ranked))
        chosen = self.guide.get(key, ranked[-1])
        self.choices[key] = chosen
        return chosen

    def _known_axis(self, own: Tensor, axes: Sequence[int]) -> int | None:
        """Return the axis along which labels follow one another at the distance that they were first laid out at."""
        values = own.numpy()
        start = int(values.flat[0])
        for low, high, step in reversed(self.steps):
            if low <= start < high:
                for axis in axes:
                    line = values[(0,) * axis + (slice(None),) + (0,) * (own.dim() - axis - 1)]
                    others = line[line != start]  # each may be repeated, as for every position of a kernel
                    if len(others) and int(others[0]) - start == step:
                        return axis
        return None

    def laid_out(self, own: Tensor, axis: int) -> None:
        """Remember along which axis the channels of a field run that was just laid out along several."""
        flat = own[own >= 0]
        second = tuple(int(a == axis) for a in range(own.dim()))
        step = int(own[second]) - int(own[(0,) * own.dim()])
        entry = (int(flat.min()), int(flat.max()) + 1, step) if len(flat) else None
        if entry is not None and entry not in self.steps:
            self.steps.append(entry)

    def is_column(self, own: Tensor) -> bool:
        """Say whether a field is that of a grouped weight's input channels, which repeats along its filters."""
        start = int(own[(0,) * own.dim()])
        return any(low <= start < high for low, high in self.columns)

    def new_labels(self, tensor: str, axis: int, size: int, blocks: int = 1) -> Tensor:
        """Return `size` fresh labels, (size,), owned by an axis of a state-dict tensor, in equal blocks."""
        self.owners.append(Owner(tensor, axis, self._next, size, blocks))
        self._starts.append(self._next)
        self._next += size
        return torch.arange(self._next - size, self._next)

    def fixed_labels(self, size: int) -> Tensor:
        """Return labels, (size,), for positions whose number is fixed, where these have to be told apart.

        They meet others as "no label" does, and stay, since no layer produces them.
        """
        labels = self.new_labels("", 0, size)
        self.fixed.append((int(labels[0]), int(labels[-1]) + 1))
        return labels

    def _is_fixed(self, labels: Numbers) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = labels < 0
        for low, high in self.fixed:
            found |= (labels >= low) & (labels < high)
        return found

    def owned_too(self, tensor: str, labels: Tensor) -> None:
        """Say that a run of labels numbers a vector of the state dict as well."""
        start = int(labels.numpy().flat[0])
        self.others.append(Owner(tensor, 0, start, labels.numel()))

    def owner(self, label: int) -> Owner:
        """Return the first tensor and axis that a label numbers."""
        return self.owners[bisect_right(self._starts, label) - 1]

    def features(self, first: int = 0, last: int | None = None) -> Marks:
        """Return a number for every label of some owners that tells which tensor, axis and block it numbers."""
        owners = self.owners[first:last]
        keys = [(o.tensor, o.axis, first + number if not o.tensor else 0) for number, o in enumerate(owners, 1)]
        features = np.repeat(np.array([hash(key) for key in keys], np.int64).view(np.uint64), [o.size for o in owners])
        start = owners[0].start if owners else 0
        for owner in owners:
            if owner.blocks > 1:
                number = np.repeat(np.arange(owner.blocks, dtype=np.uint64), owner.size // owner.blocks)
                features[owner.start - start : owner.start - start + owner.size] += number
        return scrambled(features)

    @property
    def label_count(self) -> int:
        """Number of labels given out."""
        return self._next

    def read(self, tensor: object) -> Fields:
        """Return the fields that a tensor carries; none for one that the trace has not seen."""
        entry = self._fields.get(id(tensor))
        return entry[1] if entry else ()

    def write(self, tensor: Tensor, fields: Iterable[Tensor], *, is_compact: bool = False) -> None:
        """Let a tensor carry these fields, each made compact; fields without labels are dropped."""
        kept = tuple(fields)
        if not is_compact:
            kept = tuple(compact(own) for own in kept)
            kept = tuple(own for own in kept if own.numel() > 1 and _has_labels(own))
        for own in kept:
            assert own.dim() == tensor.dim(), "a field has the rank of its tensor"
        self._fields[id(tensor)] = (tensor, kept)

    def even(self, tensor: Tensor) -> frozenset[int]:
        """Return the axes along which a tensor made in forward has the same value everywhere: it may be any length."""
        entry = self.uniform.get(id(tensor))
        return entry[1] if entry else frozenset()

    def write_even(self, tensor: Tensor, axes: Iterable[int]) -> None:
        """Say along which axes a tensor has the same value everywhere."""
        found = frozenset(axis for axis in axes if tensor.shape[axis] > 1)
        if found:
            self.uniform[id(tensor)] = (tensor, found)

    def take_over(self, tensor: Tensor, twin: Tensor) -> None:
        """Let a tensor carry what another does."""
        self._fields[id(tensor)] = (tensor, self.read(twin))
        if id(twin) in self.uniform:
            self.uniform[id(tensor)] = (tensor, self.uniform[id(twin)][1])

    def along(self, tensor: Tensor, axis: int, use: str) -> Tensor:
        """Return the labels along one axis, (size,), −1 for none.

        Those of a field that varies elsewhere too are united; what varies along other axes alone is left as it is.
        """
        axis %= tensor.dim()
        labels: Tensor | None = None
        for own in self.read(tensor):
            size = own.shape[axis]
            if size > 1:
                found = own.reshape(-1) if own.numel() == size else self.collapse(own, axis, use)
                labels = found if labels is None else self.unite(labels, found, use)
        return torch.full((tensor.shape[axis],), -1) if labels is None else labels

    def collapse(self, own: Tensor, axis: int, use: str) -> Tensor:
        """Unite what differs along the other axes: the labels that one index of this axis stands for, (size,)."""
        if varying(own) == {axis}:
            return own.reshape(-1)
        rows = own.movedim(axis, 0).reshape(own.shape[axis], -1)
        first = rows.max(dim=1).values
        self.unite(first[:, None].expand_as(rows), rows, use)
        return first

    def only_along(self, tensor: Tensor, axes: set[int], use: str) -> None:
        """Freeze every field of a tensor that varies along none of these axes, but along another."""
        for own in self.read(tensor):
            if all(own.shape[axis] == 1 for axis in axes):
                self.freeze(own, f"{use} sees channels along another axis")

    def unite(self, a: Tensor, b: Tensor, use: str) -> Tensor:
        """Say that labels which meet are the same channel, and return them; freeze those that meet a fixed position."""
        if a is b:
            return a
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        elif a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
            return a
        first, second = a.numpy(), b.numpy()
        if self.fixed or (first | second).min() < 0:  # the sign of either
            fixed = self._is_fixed(first)
            found = np.where(fixed & (second >= 0), second, first)
            met = fixed ^ self._is_fixed(second)
            if met.any():
                self.freeze(torch.from_numpy(found[met]), f"{use} meets positions whose number is fixed")
            known = (first >= 0) & (second >= 0)
            self.unions.append((first[known], second[known]))
            return torch.from_numpy(found)
        self.unions.append((first.reshape(-1), second.reshape(-1)))
        return a

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Say that labels which meet count alike, and freeze those that meet a fixed position."""
        a, b = torch.broadcast_tensors(a, b)
        first, second = self._is_fixed(a.numpy()), self._is_fixed(b.numpy())
        fixed = torch.from_numpy(first ^ second)
        if bool(fixed.any()):
            met = torch.where(torch.from_numpy(first), b, a)[fixed]
            self.freeze(met, f"{self.op} needs as many as of positions whose number is fixed")
        differ = (a != b) & ~fixed & (a >= 0) & (b >= 0)
        if bool(differ.any()):
            self.ties.append((a[differ], b[differ]))
            self.tied_at.append((self.op, str(place_of_call())))

    def mark(self, own: Tensor, axis: int) -> None:
        """Say which index along `axis` each label lies at: a piece of its own."""
        shape = [1] * own.dim()
        shape[axis] = -1
        numbers = np.arange(own.shape[axis], dtype=np.uint64).reshape(shape)
        marks = scrambled(numbers + hashed((self.mode, self.calls, axis)))
        flat = own.reshape(-1)
        known = flat >= 0
        self.marks.append((flat[known], np.broadcast_to(marks, own.shape).reshape(-1)[known.numpy()]))

    def unmark(self, labels: Tensor) -> None:
        """Let labels of one owner no longer be told apart by the blocks that they were numbered in."""
        flat = labels.reshape(-1)
        if int(flat.min()) < 0:
            return
        owner = self.owner(int(flat[0]))
        number = bisect_right(self._starts, owner.start) - 1
        features = self.features(number, number + 1)[flat.numpy() - owner.start]
        with np.errstate(over="ignore"):
            self.marks.append((flat, hashed((owner.tensor, owner.axis, "whole")) - features))

    def pieces(self, own: Tensor, axis: int) -> None:
        """Say that the indices along `axis` are pieces of which each keeps as many channels as the others."""
        if own.shape[axis] > 1:
            self.tie(own.narrow(axis, 0, 1), own)
            self.mark(own, axis)

    def unequal(self, parts: Sequence[Tensor]) -> None:
        """Say that these pieces, (rows, size) each, keep their proportions: so many of one for so many of another."""
        unit = gcd(*(part.shape[1] for part in parts))
        self.is_risky = True
        first = parts[0].reshape(len(parts[0]), unit, -1)[:, :, :1]
        for number, part in enumerate(parts):
            self.tie(first, part.reshape(len(part), unit, -1))
            self._mark_part(part, number)

    def related(self, one: Tensor, other: Tensor) -> None:
        """Say that two runs of labels, (size,) each, keep their proportion, as the code takes one from the other."""
        unit = gcd(len(one), len(other))
        first = one.view(unit, -1)[:, :1]
        self.tie(first, one.view(unit, -1))
        self.tie(first, other.view(unit, -1))

    def separate(self, parts: Sequence[Tensor]) -> None:
        """Say that these pieces, (rows, size) each, may keep any number of channels each."""
        self.is_risky = True
        for number, part in enumerate(parts):
            self._mark_part(part, number)

    def _mark_part(self, part: Tensor, number: int) -> None:
        known = part[part >= 0]
        mark = scrambled(np.array([number], np.uint64) + hashed((self.mode, self.calls, "part")))
        self.marks.append((known, np.repeat(mark, len(known))))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Keep these labels whole; the module that is running is added to the reason."""
        labels = labels[labels >= 0].unique()
        if len(labels):
            name, module = self.modules[-1] if self.modules else ("", None)
            where = f" (in {name or 'the model itself'}: {type(module).__name__})" if module is not None else ""
            place = place_of_call() if module is not None else None
            self.frozen.append(Frozen(labels, reason + where, self.op, str(place or "")))

    def freeze_tensors(self, tensors: Sequence[object], reason: str) -> None:
        """Keep every label that any of these tensors carries."""
        for own in self.all_fields(tensors):
            self.freeze(own, reason)

    def all_fields(self, tensors: Sequence[object]) -> Iterator[Tensor]:
        """Yield every field of every tensor."""
        for tensor in tensors:
            yield from self.read(tensor)


def _has_labels(own: Tensor) -> bool:
    values = own.numpy()
    return bool(values.flat[0] >= 0 or values.max() >= 0)
