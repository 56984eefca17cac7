"""How data flows from layer to layer: the trace's steps, reduced to inputs, layers, and where paths join or are cut.

The operations between these (norms, activations, pooling) change no channels; a node lists those that its result runs
through. What a tensor carries is found by its labels, so that every node knows which coupled channels leave it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.collector import uncollected
from prunus.errors import TraceError
from prunus.graph.channels import ChannelGraph, Ids
from prunus.graph.findings import Call
from prunus.graph.uses import Names, Traced, Use

if TYPE_CHECKING:
    from prunus.graph.recording import Recording, Runner

NodeKind = Literal["input", "layer", "join", "cut"]

# What the operations between layers are called; those that are empty only lay a tensor out anew.
_CALLED = {
    "relu": "ReLU",
    "silu": "SiLU",
    "gelu": "GELU",
    "hardtanh": "ReLU6",
    "hardswish": "hard-swish",
    "hardsigmoid": "hard-sigmoid",
    "leaky_relu": "leaky ReLU",
    "batch_norm": "BatchNorm",
    "native_layer_norm": "LayerNorm",
    "native_group_norm": "GroupNorm",
    "max_pool2d_with_indices": "max pool",
    "avg_pool2d": "average pool",
    "mean": "mean",
    "cat": "concatenation",
    "add": "sum",
    "sub": "difference",
    "mul": "product",
    "bmm": "matrix product",
    "mm": "matrix product",
    "constant_pad_nd": "padding",
    "native_dropout": "",
    "view": "",
    "_unsafe_view": "",
    "t": "",
    "transpose": "",
    "permute": "",
    "expand": "",
    "clone": "",
    "unsqueeze": "",
    "squeeze": "",
    "alias": "",
    "detach": "",
    "_to_copy": "",
    "copy": "",
    "select": "",
    "slice": "",
    "split": "",
    "unbind": "",
}
_CUTS = {"split", "split_with_sizes", "chunk", "unbind", "select", "slice", "narrow", "index_select", "index"}


@dataclass(frozen=True)
class FlowNode:
    """An input, a layer, a join of several paths or a cut of one, in the order in which they run.

    `inputs` are the numbers of the nodes whose results it reads; `name` is the module that runs it, for a layer its own
    name; `op` what it does, `through` what its result runs through before another node reads it. `channels` are the
    coupled channels along the result, each once, as ids, −1 for every one that is always kept; `width` is the length
    of its channel axis. `macs` are spent by this use of the layer's weight, for one example.
    """

    kind: NodeKind
    name: str
    op: str
    inputs: tuple[int, ...]
    width: int
    channels: Ids = field(repr=False)
    through: tuple[str, ...] = ()
    weight: str = ""
    macs: int = 0


def flow_of(model: nn.Module, graph: ChannelGraph) -> tuple[FlowNode, ...]:
    """Find how data flows through a traced model in evaluation mode; the model runs once more on labels.

    Args:
        model: the model that `graph` was traced from.
        graph: its channel graph, as `prunus.trace` returned it.

    Raises:
        TraceError: the graph does not come from a trace.
    """
    if graph.runner is None:
        raise TraceError("this channel graph has no trace to take the flow from; get one by prunus.trace(model, x).")
    runner: Runner = graph.runner
    with uncollected():
        recording = runner.record(model, graph.hints[0])
    return _Reader(recording, graph, tree_leaves(list(runner.args))).read()


class _Reader:
    """Reads the steps of one recording, and keeps which nodes' results every tensor holds."""

    def __init__(self, recording: Recording, graph: ChannelGraph, args: Iterable[object]) -> None:
        traced = recording.traced
        self.steps = recording.steps[False]
        self.tape = traced.tape
        self.component = np.append(traced.layout.component, -1)  # by label; the last entry answers label −1
        self.ids = _ids_by_component(traced, graph)
        self.shape_of = {name: tensor.shape for name, tensor in graph.tensors.items()}
        names = Names(traced.state.tensors)
        uses = [Use(traced.tape, found, names) for found in traced.evaluated.contractions]
        self.uses = {id(use.contracted.result): use for use in uses if use.weight}
        self.layers = {layer.weight: layer.name for layer in graph.layers}
        self.shapes = {(tuple(arg.shape), arg.dtype) for arg in args if isinstance(arg, Tensor)}
        self.nodes: list[FlowNode] = []
        self.sources: dict[int, tuple[int, ...]] = {id(tensor): () for tensor in traced.state.tensors.values()}

    def read(self) -> tuple[FlowNode, ...]:
        for call, module in self.steps:
            self._step(call, module[0] if module else "")
        return tuple(self.nodes)

    def _step(self, call: Call, module: str) -> None:
        """Make a node of a step, or let its result hold what its operands do."""
        sources = tuple(sorted({number for tensor in call.inputs for number in self._sources(tensor)}))
        op = call.name.removeprefix("aten.").removesuffix("_")
        use = self.uses.pop(id(call.outputs[0]), None) if call.outputs else None
        if use is not None and sources:
            sources = (self._add("layer", self.layers.get(str(use.weight), module), op, sources, call, use),)
        elif len(sources) > 1:
            sources = (self._add("join", module, _called(op), sources, call),)
        elif sources and op in _CUTS and self._cuts(call):
            sources = (self._add("cut", module, "cut", sources, call),)
        elif sources and _called(op) and not (op == "cat" and len(call.inputs) == 1):
            self._runs_through(sources[0], _called(op))
        for tensor in call.outputs:
            self.sources[id(tensor)] = sources

    def _sources(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the nodes whose results a tensor holds; one that nothing made is an input, or a constant."""
        known = self.sources.get(id(tensor))
        if known is None:
            known = ()
            if (tuple(tensor.shape), tensor.dtype) in self.shapes:
                width = tensor.shape[1] if tensor.dim() > 1 else 1
                self.nodes.append(FlowNode("input", "input", "", (), width, np.full(width, -1)))
                known = (len(self.nodes) - 1,)
            self.sources[id(tensor)] = known
        return known

    def _add(
        self, kind: NodeKind, name: str, op: str, inputs: tuple[int, ...], call: Call, use: Use | None = None
    ) -> int:
        weight = str(use.weight) if use is not None else ""
        macs = use.contracted.positions * prod(self.shape_of[weight]) if use is not None else 0
        found = [self._channels(part) for part in (call.outputs if kind == "cut" else call.outputs[:1])]
        channels = np.concatenate([ids for ids, _ in found])
        width = len(use.outputs) if use is not None else sum(width for _, width in found)
        self.nodes.append(FlowNode(kind, name, op, inputs, width, channels, (), weight, macs))
        return len(self.nodes) - 1

    def _channels(self, tensor: Tensor) -> tuple[Ids, int]:
        """Return the ids of the coupled channels that a tensor carries, each once, and the length of their axis."""
        fields = self.tape.read(tensor)
        if not fields:
            width = tensor.shape[1] if tensor.dim() > 1 else 1
            return np.full(width, -1), width
        labels = np.unique(np.concatenate([own.numpy().ravel() for own in fields]))
        return self.ids[np.unique(self.component[labels])], max(max(own.shape) for own in fields)

    def _cuts(self, call: Call) -> bool:
        """Say whether a step leaves channels out of its result, or shares them out."""
        before, after = (self._carried(tensor) for tensor in (call.inputs[0], call.outputs[0]))
        return bool(before) and after != before

    def _carried(self, tensor: Tensor) -> frozenset[int]:
        fields = self.tape.read(tensor)
        return frozenset(np.unique(np.concatenate([own.numpy().ravel() for own in fields])).tolist() if fields else ())

    def _runs_through(self, number: int, what: str) -> None:
        node = self.nodes[number]
        if what not in node.through:
            self.nodes[number] = replace(node, through=(*node.through, what))


def _called(op: str) -> str:
    if "batch_norm" in op:
        return "BatchNorm"
    if "adaptive" in op and "pool" in op:
        return "pooling"
    return _CALLED.get(op, op.replace("_", " ").strip())


def _ids_by_component(traced: Traced, graph: ChannelGraph) -> Ids:
    """Return the channel id of every component of a trace; the parameters say which label has which."""
    ids = np.full(traced.layout.count + 1, -1, np.int64)
    for name, tensor in traced.state.tensors.items():
        by_shape = {known.shape: known for known in graph.tensors[name].fields}
        for own in traced.tape.read(tensor):
            labels, known = own.numpy(), by_shape.get(tuple(own.shape))
            if known is not None:
                has = labels >= 0
                ids[traced.layout.component[labels[has]]] = known[has]
    return ids
