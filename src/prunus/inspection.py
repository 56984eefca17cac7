"""What an inspection of a network says: rows of plain data, which `prunus inspect --json` prints."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from prunus.checking import FrozenChannels
from prunus.cost import Cost
from prunus.graph.flow import NodeKind

_PLAIN = ConfigDict(frozen=True, extra="forbid")


class Saving(BaseModel):
    """What a network no longer costs once a group keeps `kept` of its channels."""

    model_config = _PLAIN

    kept: int
    params: int
    macs: int
    size_bytes: int


class Coupling(BaseModel):
    """An operation that makes channels of several paths one: `op`, in how many places, and the module of the first."""

    model_config = _PLAIN

    op: str
    count: int
    first: str


class NodeRow(BaseModel):
    """One input, layer, join or cut of the data flow; `inputs` are the numbers of the nodes that it reads.

    `groups` says which channel groups run along its result, by their places in `Inspection.groups`, and with how many
    channels; `kept` how many of the `width` channels always stay.
    """

    model_config = _PLAIN

    kind: NodeKind
    name: str
    op: str
    inputs: tuple[int, ...]
    through: tuple[str, ...]
    width: int
    groups: tuple[tuple[int, int], ...]
    kept: int
    macs: int
    macs_share: float


class GroupRow(BaseModel):
    """One channel group: who writes and reads it, what it may keep, what it touches and what half of it would save.

    `producers` write its channels, `consumers` read them, `passes` are depthwise layers that they run through one by
    one; layers are named as modules are. `constraint` says in words which numbers of channels may stay; `step` is their
    common step (1: any number), `pieces` how many parts must keep equally many, each of `channels / pieces`.
    `couplings` are the sums and products that unite channels of several layers. `params` and `macs` are those of all
    tensors that the group runs along, shares those of the whole network.
    """

    model_config = _PLAIN

    name: str
    channels: int
    pieces: int
    step: int
    levels: int
    constraint: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    passes: tuple[str, ...]
    couplings: tuple[Coupling, ...]
    tensors: tuple[str, ...]
    params: int
    params_share: float
    macs: int
    macs_share: float
    half: Saving


class Inspection(BaseModel):
    """What a trace says of one network, with its costs.

    `channels` are those that can go, `layers` how many layers there are, and `prunable_layers` how many of them have
    prunable channels on either side, with `prunable_macs_share` of the MACs. `half` is what is left where every group
    keeps about half, `smallest` where every group keeps as few channels as it can. Groups stand in the order of what
    they touch, most MACs first; `frozen` in that of the channels that must stay; `nodes`, the data flow, as they run.
    `branches` names the residual branches that may go as a whole.
    """

    model_config = _PLAIN

    spec: str
    input_shapes: tuple[tuple[int, ...], ...]
    cost: Cost
    half: Cost
    smallest: Cost
    layers: int
    prunable_layers: int
    prunable_macs_share: float
    channels: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenChannels, ...]
    nodes: tuple[NodeRow, ...]
    branches: tuple[str, ...] = ()
