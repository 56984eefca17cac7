"""What each ATen operation does to channel labels, as a table of small rules.

A rule reads the labels of the operands from the tape and writes those of the results. An operation without a rule
freezes whatever labels it touches: unknown never means wrong, only unprunable, and the trace reports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

from prunus.graph.tape import Tape, compact, varying

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """One operation as the dispatcher saw it."""

    func: OpOverload[Any, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """The operation's name, e.g. ``aten.relu``."""
        return str(self.func.overloadpacket)

    @property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments, in order."""
        return tensors_in((self.args, tuple(self.kwargs.values())))

    @property
    def outputs(self) -> list[Tensor]:
        """Every tensor of the result."""
        return tensors_in(self.out)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Contracted:
    """A weight that met an activation: its tensor, which axes are C_out and C_in, and the positions per example.

    `computed` allows the weight to be computed from a parameter; a product of two activations has no weight at all.
    """

    weight: Tensor
    bias: Tensor | None
    result: Tensor
    output_axis: int
    input_axis: int
    positions: int
    computed: bool = True


@dataclass(frozen=True)
class Normalised:
    """A BatchNorm: what it read, its tensors and ε."""

    source: Tensor
    result: Tensor
    tensors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    eps: float


@dataclass(frozen=True)
class SizeAttribute:
    """A tuple attribute of a module whose entries count these labels: the channels that a shortcut pads with zeros."""

    module: str
    attribute: str
    parts: tuple[Tensor, ...]


@dataclass
class Findings:
    """What the rules note beside labels; `batch` is the number of examples that run at once."""

    batch: int = 1
    contractions: list[Contracted] = field(default_factory=list)
    norms: list[Normalised] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    sizes: list[SizeAttribute] = field(default_factory=list)


Rule = Callable[[Tape, Findings, Call], None]
RULES: dict[OpOverloadPacket[Any, Any], Rule] = {}


def rule(*packets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for some operations; registering one twice raises."""

    def register(function: Rule) -> Rule:
        for packet in packets:
            if packet in RULES:
                raise ValueError(f"{packet} has a rule already: {RULES[packet].__name__}")
            RULES[packet] = function
        return function

    return register


def tensors_in(value: object) -> list[Tensor]:
    """Return every tensor inside nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


NONLINEARITIES = frozenset(
    getattr(aten, name + suffix)
    for name in ("relu", "hardtanh", "leaky_relu", "elu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
    for suffix in ("", "_")
) | {aten.gelu, aten.clamp, aten.clamp_min}
"""Element-wise operations whose results count as "after the non-linearity"."""

RANDOM_FILLS = {aten.bernoulli_, aten.bernoulli, aten.uniform_, aten.normal_, aten.random_, aten.fill_, aten.zero_}
LIKES = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like}


def apply(tape: Tape, findings: Findings, call: Call) -> None:
    """Carry labels through one operation: by its own rule, as element-wise, or by freezing what it touches."""
    packet = call.func.overloadpacket
    if packet in RULES:
        RULES[packet](tape, findings, call)
    elif torch.Tag.pointwise in call.func.tags:
        pointwise(tape, findings, call)
    elif any(True for _ in tape.all_fields(call.inputs)):
        tape.freeze_tensors(call.inputs, f"{call.name} has no rule for channels")
    if packet in NONLINEARITIES:
        findings.activations.append(call.outputs[0])


@rule(*RANDOM_FILLS, *LIKES, aten.native_dropout, aten._to_copy, aten.lift_fresh, aten.copy_, aten._prelu_kernel)
def pointwise(tape: Tape, findings: Findings, call: Call) -> None:
    """Element-wise: the labels of the operands that meet are the same channel."""
    for out in call.outputs:
        rank = out.dim()
        merged: list[Tensor] = []
        operands = [tensor for tensor in call.inputs if tensor.dim()]
        for operand in operands:
            for own in tape.read(operand):
                aligned = own.reshape((1,) * (rank - own.dim()) + tuple(own.shape))
                _refuse_fixed(tape, aligned, operands, rank, call.name)
                merged = _merge(tape, merged, aligned, call.name)
        tape.write(out, merged)


def _merge(tape: Tape, fields: list[Tensor], new: Tensor, use: str) -> list[Tensor]:
    """Add a field to those of a result, united with each that varies along a common axis."""
    apart = []
    for old in fields:
        if varying(old) & varying(new):
            new = tape.unite(old, new, use)
        else:
            apart.append(old)
    return [*apart, new]


def _refuse_fixed(tape: Tape, aligned: Tensor, operands: Sequence[Tensor], rank: int, use: str) -> None:
    """Freeze a field that meets an operand which is as long along its axis but carries no label there."""
    axes = varying(aligned)
    for operand in operands:
        shape = (1,) * (rank - operand.dim()) + tuple(operand.shape)
        long = {axis for axis in axes if shape[axis] > 1}
        offset = rank - operand.dim()
        covered = {axis + offset for own in tape.read(operand) for axis in varying(own)}
        if long and not long & covered:
            tape.freeze(aligned, f"{use} meets a tensor of fixed size")


# Movement: the same operation, run on the labels.


@rule(
    aten.permute, aten.transpose, aten.t, aten.expand, aten.squeeze, aten.unsqueeze, aten.alias, aten.detach, aten.flip
)
def movement(tape: Tape, findings: Findings, call: Call) -> None:
    """Every element keeps its label, wherever it goes."""
    source = call.args[0]
    moved = [call.func(own.expand(source.shape), *call.args[1:], **call.kwargs) for own in tape.read(source)]
    tape.write(call.out, moved)


@rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def view(tape: Tape, findings: Findings, call: Call) -> None:
    """Lay labels out anew. Where one axis becomes several, the longest carries the channels, the others stay whole."""
    source, out = call.args[0], call.out
    moved = [compact(own.expand(source.shape).reshape(out.shape)) for own in tape.read(source)]
    for own in moved:
        axes = sorted(varying(own), key=lambda axis: (own.shape[axis], axis))
        for axis in axes[:-1]:
            tape.couple(own, axis)
    tape.write(out, moved)


@rule(aten.split, aten.split_with_sizes, aten.chunk)
def split(tape: Tape, findings: Findings, call: Call) -> None:
    """Pieces cut by position stay equal: channels at equal offsets go together. Unequal pieces are kept whole."""
    source, pieces = call.args[0], call.out
    axis = call.arg(2, "dim", 0) % source.dim()
    results: list[list[Tensor]] = [[] for _ in pieces]
    for own in tape.read(source):
        parts = call.func(own.expand(source.shape), *call.args[1:], **call.kwargs)
        if axis in varying(own):
            if len({piece.shape[axis] for piece in pieces}) > 1:
                tape.freeze(own, f"{call.name} cuts it into unequal pieces")
            else:
                for part in parts[1:]:
                    tape.unite(parts[0], part, call.name)
        for result, part in zip(results, parts, strict=True):
            result.append(part)
    for piece, fields in zip(pieces, results, strict=True):
        tape.write(piece, fields)


@rule(aten.slice, aten.select, aten.unbind, aten.narrow)
def cut(tape: Tape, findings: Findings, call: Call) -> None:
    """Keep an axis whole that is cut at a fixed position; the other axes keep their labels."""
    source = call.args[0]
    axis = call.arg(1, "dim", 0) % source.dim()
    whole = all(tuple(out.shape) == tuple(source.shape) for out in call.outputs)
    results: list[list[Tensor]] = [[] for _ in call.outputs]
    for own in tape.read(source):
        if axis in varying(own) and not whole:
            tape.freeze(own, f"{call.name} cuts it at a fixed position")
        parts = call.func(own.expand(source.shape), *call.args[1:], **call.kwargs)
        for result, part in zip(results, tensors_in(parts), strict=True):
            result.append(part)
    for out, fields in zip(call.outputs, results, strict=True):
        tape.write(out, fields)


@rule(aten.cat, aten.concat)
def cat(tape: Tape, findings: Findings, call: Call) -> None:
    """Along the joined axis labels follow one another; along the others they meet."""
    pieces = [piece for piece in call.args[0] if piece.numel() or piece.dim() > 1]
    axis = call.arg(1, "dim", 0) % call.out.dim()
    joined = [torch.full((1,) * call.out.dim(), -1) for _ in pieces]
    across: list[Tensor] = []
    for number, piece in enumerate(pieces):
        for own in tape.read(piece):
            if varying(own) == {axis}:
                joined[number] = own
            elif axis in varying(own):
                tape.freeze(own, f"{call.name} joins channels spread over several axes")
            else:
                _refuse_fixed(tape, own, pieces, call.out.dim(), call.name)
                across = _merge(tape, across, own, call.name)
    shape = [1] * call.out.dim()
    rows = []
    for piece, own in zip(pieces, joined, strict=True):
        shape[axis] = piece.shape[axis]
        rows.append(own.expand(shape))
    tape.write(call.out, [torch.cat(rows, axis), *across])


# Contraction: channels meet a weight's input axis; its output axis is what comes out.


@rule(aten.convolution)
def convolution(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite input channels with the weight's C_in; C_out comes out. Groups stay as many, or go with their channel."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    output_axis, input_axis = (1, 0) if transposed else (0, 1)
    _keep_only(tape, x, {1}, call.name)
    incoming = tape.along(x, 1, call.name)
    outgoing = tape.along(weight, output_axis, call.name)
    columns = tape.along(weight, input_axis, call.name)
    if groups == 1:
        tape.unite(incoming, columns, call.name)
    elif groups == len(incoming) and not transposed:
        outgoing = tape.unite(incoming.repeat_interleave(weight.shape[0] // groups), outgoing, call.name)
    elif transposed:
        tape.freeze(
            torch.cat([incoming, outgoing, columns]), "a grouped transposed convolution has no rule for channels"
        )
    else:
        tape.couple(incoming.view(groups, -1), 0)
        tape.couple(outgoing.view(groups, -1), 0)
        tape.unite(incoming.view(groups, -1)[0], columns, call.name)
    positions = math.prod((x if transposed else call.out).shape[2:])
    _produce(tape, findings, call, (weight, bias, output_axis, input_axis), outgoing, positions)


def _keep_only(tape: Tape, x: Tensor, axes: set[int], use: str) -> None:
    """Freeze every field of x that varies along an axis other than these."""
    for own in tape.read(x):
        if not varying(own) <= axes:
            tape.freeze(own, f"{use} sees channels along another axis")


def _produce(
    tape: Tape,
    findings: Findings,
    call: Call,
    weight: tuple[Tensor, Tensor | None, int, int],
    outgoing: Tensor,
    positions: int,
) -> None:
    """Write the labels of a contraction's result and note it as a layer."""
    tensor, bias, output_axis, input_axis = weight
    if bias is not None:
        outgoing = tape.unite(outgoing, tape.along(bias, 0, call.name), call.name)
    shape = [1] * call.out.dim()
    shape[1] = len(outgoing)
    tape.write(call.out, [outgoing.view(shape)])
    findings.contractions.append(Contracted(tensor, bias, call.out, output_axis, input_axis, positions))


@rule(aten.mm, aten.addmm)
def matrix_product(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite features with a linear layer's input axis; rows are positions and carry no channels."""
    bias, x, weight = (None, *call.args[:2]) if call.func.overloadpacket is aten.mm else call.args[:3]
    _keep_only(tape, x, {1}, call.name)
    tape.unite(tape.along(x, 1, call.name), tape.along(weight, 0, call.name), call.name)
    outgoing = tape.along(weight, 1, call.name)
    _produce(tape, findings, call, (weight, bias, 1, 0), outgoing, x.shape[0] // findings.batch)


@rule(aten.bmm)
def batched_product(tape: Tape, findings: Findings, call: Call) -> None:
    """Unite the axes that are summed over; rows and columns go on. A weight repeated for a batch is a layer."""
    left, right = call.args
    _keep_only(tape, left, {1, 2}, call.name)
    _keep_only(tape, right, {1, 2}, call.name)
    tape.unite(tape.along(left, 2, call.name), tape.along(right, 1, call.name), call.name)
    rows, columns = tape.along(left, 1, call.name), tape.along(right, 2, call.name)
    tape.write(call.out, [rows.view(1, -1, 1), columns.view(1, 1, -1)])
    positions = left.shape[0] * left.shape[1] // findings.batch
    findings.contractions.append(Contracted(right, None, call.out, 2, 1, positions, computed=False))


# Normalisation.


@rule(aten.native_batch_norm, aten.cudnn_batch_norm)
def batch_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """BatchNorm treats channels apart: its affine parameters and running statistics meet them."""
    x, tensors, out = call.args[0], tuple(call.args[1:5]), call.outputs[0]
    _keep_only(tape, x, {1}, call.name)
    channels = tape.along(x, 1, call.name)
    for tensor in tensors:
        if tensor is not None:
            channels = tape.unite(channels, tape.along(tensor, 0, call.name), call.name)
    shape = [1] * out.dim()
    shape[1] = len(channels)
    tape.write(out, [channels.view(shape)])
    findings.norms.append(Normalised(x, out, (tensors[0], tensors[1], tensors[2], tensors[3]), float(call.args[-1])))


@rule(aten.native_layer_norm, aten.native_group_norm)
def mixing_norm(tape: Tape, findings: Findings, call: Call) -> None:
    """LayerNorm and GroupNorm take their statistics over channels, so removing one changes the others: kept whole."""
    tape.freeze_tensors(call.inputs, f"{call.name} mixes channels")
    tape.write(call.outputs[0], tape.read(call.args[0]))


# Spatial operations and reductions.


@rule(
    *(aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d),
    *(aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.reflection_pad2d, aten.replication_pad2d),
)
def spatial(tape: Tape, findings: Findings, call: Call) -> None:
    """Rows and columns change, channels do not."""
    x = call.args[0]
    _keep_only(tape, x, set(range(x.dim() - 2)), call.name)
    for out in call.outputs:
        tape.write(out, [own for own in tape.read(x) if varying(own) <= set(range(x.dim() - 2))])


@rule(aten.mean, aten.sum, aten.amax, aten.amin)
def reduction(tape: Tape, findings: Findings, call: Call) -> None:
    """Reduced axes go; channels that are reduced over are kept whole, since fewer of them give another value."""
    x, out = call.args[0], call.out
    given = call.arg(1, "dim")
    dims = set(range(x.dim())) if given is None or given == [] else {d % x.dim() for d in _as_list(given)}
    kept = out.dim() == x.dim()
    fields = []
    for own in tape.read(x):
        if varying(own) & dims:
            tape.freeze(own, f"{call.name} runs over channels")
        else:
            fields.append(own if kept else own.squeeze(tuple(sorted(dims))))
    tape.write(out, fields)


def _as_list(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@rule(aten.constant_pad_nd)
def constant_pad(tape: Tape, findings: Findings, call: Call) -> None:
    """Keep channels under padding in space; padded channels are channels too where the module stores their number."""
    x, pads, out = call.args[0], call.args[1], call.out
    fields = list(tape.read(x))
    for back in range(len(pads) // 2):
        axis, pair = x.dim() - 1 - back, (pads[2 * back], pads[2 * back + 1])
        if pair == (0, 0) or not any(axis in varying(own) for own in fields):
            continue
        margins = _margins(tape, findings, pair)
        for number, own in enumerate(fields):
            if varying(own) == {axis} and margins is not None:
                shape = [1] * x.dim()
                shape[axis] = -1
                fields[number] = torch.cat([margins[0].view(shape), own, margins[1].view(shape)], axis)
            elif axis in varying(own):
                tape.freeze(own, f"{call.name} pads it by a number that no attribute of the module stores")
                fields[number] = torch.nn.functional.pad(
                    own, [p if x.dim() - 1 - i // 2 == axis else 0 for i, p in enumerate(pads)], value=-1
                )
    tape.write(out, fields)


def _margins(tape: Tape, findings: Findings, pair: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """Give the channels of padding labels of their own if the running module stores their number as a tuple."""
    if min(pair) < 0 or not tape.modules:
        return None
    name, module = tape.modules[-1]
    attribute = _attribute_equal_to(module, pair)
    if attribute is None:
        return None
    for known in findings.sizes:
        if known.module == name and known.attribute == attribute:
            return known.parts[0], known.parts[1]
    parts = tuple(tape.new_labels("", 0, size) for size in pair)
    findings.sizes.append(SizeAttribute(name, attribute, parts))
    return parts[0], parts[1]


def _attribute_equal_to(module: nn.Module, value: tuple[int, ...]) -> str | None:
    names = [name for name, held in vars(module).items() if isinstance(held, tuple) and held == value]
    return names[0] if len(names) == 1 else None
