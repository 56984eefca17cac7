"""What a trace finds: tensors with labels, coupled channels and the groups they form. Plain data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

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
        for field in self.fields:
            axis = running_axis(field)
            rows = field.size // field.shape[axis]
            shape[axis] = int(keep[field].sum()) // rows
        return tuple(shape)


def running_axis(field: Ids) -> int:
    """Return the axis that a field's channels run along: the last on which it varies."""
    return max((axis for axis, length in enumerate(field.shape) if length > 1), default=0)


@dataclass(frozen=True)
class ChannelGroup:
    """The coupled channels of one width, seen from everywhere it matters.

    `channels` holds their ids in the order of the layer that gives the group its name; `tensors` the (state-dict name,
    axis) pairs that the width runs along.
    """

    name: str
    channels: Ids
    tensors: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Number of coupled channels."""
        return len(self.channels)


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
    """A convolution or linear layer: its tensors' names, and the ids of the channels that it produces, (C_out,)."""

    name: str
    weight: str
    bias: str | None
    norm: Norm | None
    channels: Ids
    transposed: bool = False


@dataclass(frozen=True)
class Contraction:
    """One use of a weight: it costs (kept elements of the weight) × `positions` MACs for one example.

    `input_axis` is the weight's axis that channels are consumed along; None where channels pass one by one (depthwise).
    """

    weight: str
    positions: int
    input_axis: int | None = None


@dataclass(frozen=True)
class SizeSetting:
    """A tuple attribute of a module that counts channels, one entry for each part's ids (a zero-padding shortcut's)."""

    module: str
    attribute: str
    parts: tuple[Ids, ...]


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
