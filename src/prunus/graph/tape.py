"""The labels of one trace: which tensor carries which, which of them are the same channel, and which may not go.

A *label* is an integer that stands for one index of one axis of one parameter. A *label field* is an int64 tensor with
the rank of the tensor that it describes and size 1 along every axis on which it does not vary. −1 is "no label": a
position whose size the network fixes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Fields = tuple[Tensor, ...]


@dataclass(frozen=True)
class Owner:
    """A run of labels and the state-dict tensor and axis that they number; no tensor for channels made by padding."""

    tensor: str
    axis: int
    start: int
    size: int


@dataclass(frozen=True)
class Frozen:
    """Labels that must stay, and why."""

    labels: Tensor
    reason: str


def compact(field: Tensor) -> Tensor:
    """Return the field with size 1 along every axis on which it does not vary."""
    for axis, size in enumerate(field.shape):
        if size > 1:
            first = field.narrow(axis, 0, 1)
            if field.stride(axis) == 0 or bool((field == first).all()):
                field = first
    return field


def varying(field: Tensor) -> set[int]:
    """Return the axes along which a compact field varies."""
    return {axis for axis, size in enumerate(field.shape) if size > 1}


class Tape:
    """Everything that a trace writes down while the model runs on labels."""

    def __init__(self) -> None:
        self.owners: list[Owner] = []
        self.unions: list[Tensor] = []
        self.frozen: list[Frozen] = []
        self.modules: list[tuple[str, nn.Module]] = []
        self._starts: list[int] = []
        self._next = 0
        # A tensor is known by its id; keeping it alive keeps the id its own (meta tensors hold no memory).
        self._fields: dict[int, tuple[Tensor, Fields]] = {}

    def new_labels(self, tensor: str, axis: int, size: int) -> Tensor:
        """Return `size` fresh labels, (size,), owned by an axis of a state-dict tensor."""
        self.owners.append(Owner(tensor, axis, self._next, size))
        self._starts.append(self._next)
        self._next += size
        return torch.arange(self._next - size, self._next)

    def owner(self, label: int) -> Owner:
        """Return the tensor and axis that a label numbers."""
        return self.owners[bisect_right(self._starts, label) - 1]

    @property
    def label_count(self) -> int:
        """Number of labels given out."""
        return self._next

    def label_tensor(self, name: str, tensor: Tensor) -> None:
        """Give every index of every axis of a parameter or buffer a label of its own."""
        fields = []
        for axis, size in enumerate(tensor.shape):
            if size > 1:
                shape = [1] * tensor.dim()
                shape[axis] = size
                fields.append(self.new_labels(name, axis, size).view(shape))
        self.write(tensor, fields)

    def read(self, tensor: object) -> Fields:
        """Return the fields that a tensor carries; none for one that the trace has not seen."""
        entry = self._fields.get(id(tensor))
        return entry[1] if entry else ()

    def write(self, tensor: Tensor, fields: Iterable[Tensor]) -> None:
        """Let a tensor carry these fields, each made compact; fields without labels are dropped."""
        kept = tuple(compact(field) for field in fields)
        kept = tuple(field for field in kept if field.numel() > 1 and bool((field >= 0).any()))
        for field in kept:
            assert field.dim() == tensor.dim(), "a field has the rank of its tensor"
        self._fields[id(tensor)] = (tensor, kept)

    def along(self, tensor: Tensor, axis: int, use: str) -> Tensor:
        """Return the labels along one axis, (size,), −1 for none; freeze a field that varies elsewhere too."""
        axis %= tensor.dim()
        labels = torch.full((tensor.shape[axis],), -1)
        for field in self.read(tensor):
            if varying(field) == {axis}:
                labels = field.reshape(-1)
            elif axis in varying(field):
                self.freeze(field, f"{use} sees these channels spread over several axes")
        return labels

    def only_along(self, tensor: Tensor, axes: set[int], use: str) -> None:
        """Freeze every field of a tensor that varies along an axis other than these."""
        for field in self.read(tensor):
            if not varying(field) <= axes:
                self.freeze(field, f"{use} sees channels along another axis")

    def unite(self, a: Tensor, b: Tensor, use: str) -> Tensor:
        """Say that labels which meet are the same channel, and return them; freeze those that meet a fixed position."""
        a, b = torch.broadcast_tensors(a, b)
        both = (a >= 0) & (b >= 0) & (a != b)
        if bool(both.any()):
            self.unions.append(torch.stack([a[both], b[both]]).unique(dim=1))
        alone = (a >= 0) ^ (b >= 0)
        if bool(alone.any()):
            self.freeze(torch.maximum(a, b)[alone], f"{use} meets positions whose number is fixed")
        return torch.maximum(a, b)

    def couple(self, field: Tensor, axis: int) -> None:
        """Say that the labels along `axis` go together, since that many must stay."""
        if field.shape[axis] > 1:
            first = field.narrow(axis, 0, 1).expand_as(field)
            self.unite(first, field, "a fixed number of pieces")

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Keep these labels whole; the module that is running is added to the reason."""
        labels = labels[labels >= 0].unique()
        if len(labels):
            name, module = self.modules[-1] if self.modules else ("", None)
            where = f" (in {name or 'the model itself'}: {type(module).__name__})" if module is not None else ""
            self.frozen.append(Frozen(labels, reason + where))

    def freeze_tensors(self, tensors: Sequence[object], reason: str) -> None:
        """Keep every label that any of these tensors carries."""
        for field in self.all_fields(tensors):
            self.freeze(field, reason)

    def all_fields(self, tensors: Sequence[object]) -> Iterator[Tensor]:
        """Yield every field of every tensor."""
        for tensor in tensors:
            yield from self.read(tensor)
