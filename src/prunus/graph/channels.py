"""What a trace finds: tensors with labels, coupled channels and the groups they form. Plain data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunus.errors import PlanError

Ids = npt.NDArray[np.int64]
"""Coupled-channel ids; −1 stands for something that is always kept."""

Keep = npt.NDArray[np.bool_]
"""One flag a coupled channel, True = keep, and a last True that id −1 reads: shape (channel_count + 1,)."""


@dataclass(frozen=True)
class LabelledTensor:
    """One parameter or buffer, and which coupled channel each of its slices belongs to.

    Every field has as many axes as the tensor and broadcasts to its shape. A plain weight has one field along C_out and
    one along C_in; a grouped convolution's input field varies along both axes, since each group sees other channels.
    An element stays if all its fields' channels stay. `is_parameter` is False for a buffer, and for a further name of a
    shared parameter; `is_saved` for a buffer outside the state dict.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_parameter: bool
    fields: tuple[Ids, ...]
    is_saved: bool = True

    def keep_mask(self, keep: Keep) -> npt.NDArray[np.bool_]:
        """Return which elements stay, as a bool array that broadcasts to the tensor's shape."""
        mask = np.ones((1,) * len(self.shape), dtype=np.bool_)
        for field in self.fields:
            mask = mask & keep[field]
        return mask

    def kept_shape(self, keep: Keep) -> tuple[int, ...]:
        """Return the tensor's shape once the channels that `keep` drops are gone.

        A field that varies along two axes (a grouped convolution's) keeps equally many along its last one in every row.
        """
        shape = list(self.shape)
        for axis, fields in self.running().items():
            rows = fields[0].size // fields[0].shape[axis]
            stays = keep[fields[0]]
            for field in fields[1:]:  # a channel of each: an element of a computed weight
                stays = stays & keep[field]
            shape[axis] = int(stays.sum()) // rows
        return tuple(shape)

    def running(self) -> dict[int, list[Ids]]:
        """Return the fields by the axis that their channels run along."""
        found: dict[int, list[Ids]] = {}
        for field in self.fields:
            found.setdefault(running_axis(field), []).append(field)
        return found


def running_axis(field: Ids) -> int:
    """Return the axis that a field's channels run along: the last on which it varies."""
    return max((axis for axis, length in enumerate(field.shape) if length > 1), default=0)


@dataclass(frozen=True)
class ChannelGroup:
    """The coupled channels of one width, seen from everywhere it matters.

    `channels` holds their ids in the order of the layer that gives the group its name; `tensors` the (state-dict name,
    axis) pairs that the width runs along.

    Where the network cuts the width by position (the groups of a grouped convolution, the halves of a chunk), the
    channels lie in several *pieces*, and as many must stay in one as in the others: `pieces` says in which each lies,
    (size,), None for a single one, and `levels` how many may stay in each, (levels, pieces), rising. Any channels of a
    piece will do. Without levels any number of any channels may stay.

    A group that is `dropped` lies in a residual branch that is silent: only the least that can stay of it does.
    """

    name: str
    channels: Ids
    tensors: tuple[tuple[str, int], ...]
    pieces: Ids | None = None
    levels: npt.NDArray[np.int64] | None = None
    dropped: bool = False

    @property
    def size(self) -> int:
        """Number of coupled channels."""
        return len(self.channels)

    @property
    def piece_of(self) -> Ids:
        """The piece that each channel lies in, (size,)."""
        return np.zeros(self.size, np.int64) if self.pieces is None else self.pieces

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many channels may stay in each piece, (levels, pieces), rising; the last row is all of them."""
        return np.arange(1, self.size + 1)[:, None] if self.levels is None else self.levels

    def allows(self, kept: npt.NDArray[np.bool_]) -> bool:
        """Say whether the network can have just these channels, given as flags (size,)."""
        if self.levels is None:
            return bool(kept.any())
        counts = np.bincount(self.piece_of[kept], minlength=self.levels.shape[1])
        return bool((self.levels == counts).all(axis=1).any())


@dataclass(frozen=True)
class Norm:
    """State-dict names of a BatchNorm's tensors, where it has them, and its ε."""

    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    eps: float


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: its tensors' names, and the ids of the channels that it produces, (C_out,).

    `rectified` says whether a rectifier (ReLU, ReLU6, or a smooth one: SiLU, hard-swish, GELU) reads its BatchNorm
    directly, or the layer itself where it has none.
    """

    name: str
    weight: str
    bias: str | None
    norm: Norm | None
    channels: Ids
    transposed: bool = False
    groups: int = 1
    rectified: bool = False

    def filters(self, tensor: Tensor) -> Tensor:
        """Return what is laid out as the weight is, one row a filter: (C_out, C_in / groups, …)."""
        if not self.transposed:
            return tensor
        by_group: Tensor = tensor.unflatten(0, (self.groups, -1))  # (groups, C_in / groups, C_out / groups, …)
        return by_group.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Contraction:
    """One use of a weight: it costs (kept elements of the weight) × `positions` MACs for one example.

    `input_axis` is the weight's axis that channels are consumed along; None where channels pass one by one (depthwise).
    """

    weight: str
    positions: int
    input_axis: int | None = None


@dataclass(frozen=True)
class LayerTime:
    """What all uses of a weight take for one example, in picoseconds, by the lengths of the weight's first two axes.

    constant + per_row · r + per_column · c + per_pair · r · c, each at least 0, so that more channels never take less.
    Of a convolution's weight, r are the output channels and c the input channels of a group.
    """

    constant: int = 0
    per_row: int = 0
    per_column: int = 0
    per_pair: int = 0

    def of(self, rows: int, columns: int) -> int:
        """Return the time at these lengths."""
        return self.constant + self.per_row * rows + self.per_column * columns + self.per_pair * rows * columns


@dataclass(frozen=True)
class SizeSetting:
    """An attribute of a module that counts channels: a number, or one entry of a tuple or list for each part's ids.

    With an `index` it is that entry alone, of a list, or that key of a dict; `is_number` where it is a plain number.
    """

    module: str
    attribute: str
    parts: tuple[Ids, ...]
    index: int | str | None = None
    is_number: bool = False

    def sizes(self, keep: Keep) -> list[int]:
        """Return what each part counts once the channels that `keep` drops are gone."""
        return [int(keep[part].sum()) for part in self.parts]


@dataclass(frozen=True)
class Site:
    """What the proof does at the k-th call of an operation in one forward pass; fields of channel ids, by tensor.

    At a site that `gathers`, the operation is computed over the kept channels alone; at another, the removed channels
    of the operand are silenced. `runs` holds, for the operands and then the results of a site that gathers, the axis
    that each field's channels run along. `weight` names the weight that a contraction uses, as `contractions` does.
    """

    op: str
    index: int
    gathers: bool
    operands: tuple[tuple[Ids, ...], ...]
    results: tuple[tuple[Ids, ...], ...]
    runs: tuple[tuple[int, ...], ...] = ()
    weight: str = ""


@dataclass(frozen=True)
class Order:
    """What tells the channels of a network that changes their order apart, wherever they go.

    For every tensor its fields of component numbers; for every component its signature and the channel id (−1: always
    kept). Components are numbered in the order of their first labels.
    """

    runs: Mapping[str, tuple[npt.NDArray[np.int64], ...]]
    signatures: npt.NDArray[np.uint64]
    ids: Ids


@dataclass(frozen=True)
class Activation:
    """The k-th call of a non-linearity in one forward pass, and the channel ids of its output, (C,)."""

    index: int
    channels: Ids


@dataclass(frozen=True)
class Freeze:
    """Why `channels` coupled channels that run along `tensor` are kept whole.

    `op` is the operation that asked for it (``"aten.cumsum"``) and `where` the line of the user's code that called it
    (``"models/net.py:41, in forward"``), as far as they are known.
    """

    tensor: str
    reason: str
    channels: int
    op: str = ""
    where: str = ""


@dataclass(frozen=True)
class ChannelGraph:
    """Everything that one trace says about a network's channels."""

    tensors: Mapping[str, LabelledTensor]
    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    contractions: tuple[Contraction, ...]
    activations: tuple[Activation, ...]
    frozen: tuple[Freeze, ...]
    channel_count: int
    settings: tuple[SizeSetting, ...] = ()
    sites: tuple[Site, ...] = ()
    order: Order | None = None
    hints: Any = None
    runner: Any = None
    times: Mapping[str, LayerTime] = dataclasses.field(default_factory=dict)

    def with_times(self, times: Mapping[str, LayerTime]) -> ChannelGraph:
        """Return the graph with what its weights take, by their names in the state dict; costs then have a latency.

        Raises:
            PlanError: a name is none of a weight of at least one axis.
        """
        for name in times:
            if name not in self.tensors or not self.tensors[name].shape:
                near = difflib.get_close_matches(name, self.tensors, n=1)
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise PlanError(f"there is a time for {name!r}, which is no weight of this network{hint}.")
        return dataclasses.replace(self, times=dict(times))

    def keep_all(self) -> Keep:
        """Return the flags that keep every channel, (channel_count + 1,)."""
        return np.ones(self.channel_count + 1, dtype=np.bool_)

    def group(self, name: str) -> ChannelGroup:
        """Return the group called `name`; a PlanError names the nearest one otherwise."""
        for group in self.groups:
            if group.name == name:
                return group
        names = [group.name for group in self.groups]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"this network has no channel group {name!r}.{hint} Its groups: {', '.join(names) or 'none'}.")
