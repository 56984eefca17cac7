"""Operations that only move elements: the same operation, run on the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.graph.findings import Call, Findings
from prunus.graph.rules.pointwise import merge, refuse_fixed
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape, carrier, compact, varying


@rule(
    *(aten.permute, aten.transpose, aten.t, aten.expand, aten.squeeze, aten.unsqueeze, aten.alias, aten.detach),
    *(aten.repeat, aten.diagonal, aten.unfold, aten.numpy_T),
)
def movement(tape: Tape, findings: Findings, call: Call) -> None:
    """Every element keeps its label, wherever it goes."""
    source = call.args[0]
    if call.func.overloadpacket in (aten.repeat, aten.unfold, aten.diagonal) and tape.read(source):
        tape.is_risky = True
    moved = [call.func(own.expand(source.shape), *call.args[1:], **call.kwargs) for own in tape.read(source)]
    tape.write(call.out, moved)


@rule(aten.flip, aten.roll)
def turn(tape: Tape, findings: Findings, call: Call) -> None:
    """Channels may change places; where they do, the smaller network is asked for its own order."""
    source = call.args[0]
    for own in tape.read(source):
        axes = call.args[1] if call.func.overloadpacket is aten.flip else call.arg(2, "dims", [])
        tape.reorders = tape.reorders or bool({axis % source.dim() for axis in axes} & varying(own))
    movement(tape, findings, call)


@rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def view(tape: Tape, findings: Findings, call: Call) -> None:
    """Lay labels out anew. Where one axis becomes several, the longest carries the channels, the others are pieces."""
    source, out = call.args[0], call.out
    if not tape.read(source):
        return
    parts = _segments(tuple(source.shape), tuple(out.shape))
    results = []
    for own in tape.read(source):
        before, after = [1] * source.dim(), [1] * out.dim()
        axes = varying(own)
        split = []
        for old, new in parts:
            if axes & set(old):
                for axis in old:
                    before[axis] = source.shape[axis]
                for axis in new:
                    after[axis] = out.shape[axis]
                split.append((old, new))
        moved = compact(own.expand(before).reshape(after))
        for old, new in split:
            _note_split(tape, own, moved, set(old), set(new))
        results.append(moved)
    tape.write(out, results, is_compact=True)


def _note_split(tape: Tape, own: Tensor, moved: Tensor, old: set[int], new: set[int]) -> None:
    """Say which axes are pieces where channels come to run along more of them, and whether their order changes."""
    before, after = varying(own) & old, varying(moved) & new
    if len(after) > 1 or len(before) > 1:
        main = _main_axis(tape, moved, after) if len(after) > len(before) else None
        whole, axes = (moved, after) if len(after) >= len(before) else (own, before)
        runs = main if main is not None else max(axes, key=lambda axis: (whole.shape[axis], axis))
        tape.reorders = tape.reorders or any(axis > runs for axis in axes)
        if main is not None:
            for axis in after - {main}:
                tape.pieces(moved, axis)
    tape.is_risky = True


def _main_axis(tape: Tape, moved: Tensor, axes: set[int]) -> int:
    """Return the axis that carries the channels: the longest, or the next longest where that was found to be wrong."""
    ranked = sorted(axes, key=lambda axis: (moved.shape[axis], axis))
    return ranked[-2] if tape.hinted("swapped") else ranked[-1]


def _segments(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[range, range]]:
    """Cut two shapes of equal size into the shortest runs of axes that hold equally many elements."""
    i = j = 0
    found = []
    while i < len(a) and j < len(b):
        start, begin = i, j
        left, right = a[i], b[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= a[i]
                i += 1
            else:
                right *= b[j]
                j += 1
        found.append((range(start, i), range(begin, j)))
    if found:
        old, new = found[-1]
        found[-1] = (range(old.start, len(a)), range(new.start, len(b)))
    return found


@rule(aten.split, aten.split_with_sizes, aten.slice, aten.select, aten.unbind)
def cut(tape: Tape, findings: Findings, call: Call) -> None:
    """Cut by position: each piece of the channels keeps its share, or any number where the module stores the sizes."""
    source = call.args[0]
    named = call.func.overloadpacket in (aten.split, aten.split_with_sizes)
    axis = call.arg(2 if named else 1, "dim", 0) % source.dim()
    results: list[list[Tensor]] = [[] for _ in call.outputs]
    for own in tape.read(source):
        if axis in varying(own) and any(tuple(out.shape) != tuple(source.shape) for out in call.outputs):
            _note_cut(tape, findings, call, own, axis)
        full = own.expand([n if a == axis or own.shape[a] > 1 else 1 for a, n in enumerate(source.shape)])
        parts = call.func(full, *call.args[1:], **call.kwargs)
        for result, part in zip(results, [parts] if isinstance(parts, Tensor) else parts, strict=True):
            result.append(part)
    for out, fields in zip(call.outputs, results, strict=True):
        tape.write(out, fields)


def _note_cut(tape: Tape, findings: Findings, call: Call, own: Tensor, axis: int) -> None:
    """Say how the pieces of one field count together."""
    tape.is_risky = True
    if varying(own) != {axis} and carrier(own) != axis:
        return  # it takes some of a fixed number of pieces
    selecting = call.func.overloadpacket in (aten.select, aten.unbind)
    if selecting or tape.hinted("frozen") or varying(own) != {axis}:
        tape.freeze(own, f"{call.name} cuts it at a fixed position")
        return
    positions = torch.arange(own.numel()).view(own.shape)
    cuts = call.func(positions, *call.args[1:], **call.kwargs)
    parts = [part.reshape(-1) for part in ([cuts] if isinstance(cuts, Tensor) else cuts)]
    taken = torch.zeros(own.numel(), dtype=torch.bool)
    for part in parts:
        taken[part] = True
        tape.reorders = tape.reorders or bool((part.diff() != 1).any())
    if not bool(taken.all()):
        parts.append((~taken).nonzero().reshape(-1))
    labels = [own.reshape(-1)[part] for part in parts if len(part)]
    if _stored(tape, findings, call, labels):
        tape.separate(labels)
    else:
        tape.unequal(labels)


def _stored(tape: Tape, findings: Findings, call: Call, labels: Sequence[Tensor]) -> bool:
    """Say whether a running module stores the sizes of these pieces, each by itself, and note where."""
    if call.func.overloadpacket is not aten.split_with_sizes or tape.hinted("tied"):
        return False
    sizes = [int(size) for size in call.args[1]]
    held = holder(tape, sizes) if len(set(sizes)) > 1 or len(sizes) == 1 else None
    if held is not None:
        findings.note_size(*held, tuple(labels))
    return held is not None


def holder(tape: Tape, sizes: list[int]) -> tuple[str, str] | None:
    """Return the module that runs and its one attribute that equals these sizes."""
    for name, module in reversed(tape.modules):
        held = [key for key, value in vars(module).items() if isinstance(value, (list, tuple)) and list(value) == sizes]
        if len(held) == 1:
            return name, held[0]
    return None


@rule(aten.cat)
def cat(tape: Tape, findings: Findings, call: Call) -> None:
    """Along the joined axis labels follow one another; along the others they meet."""
    pieces = [piece for piece in call.args[0] if piece.numel() or piece.dim() > 1]
    axis = call.arg(1, "dim", 0) % call.out.dim()
    joined = [torch.full((1,) * call.out.dim(), -1) for _ in pieces]
    across: list[Tensor] = []
    for number, piece in enumerate(pieces):
        for own in tape.read(piece):
            if varying(own) == {axis} or (axis in varying(own) and carrier(own) == axis):
                flat = tape.collapse(own, axis, call.name)
                joined[number] = flat.view([-1 if a == axis else 1 for a in range(own.dim())])
            elif axis in varying(own):
                for other in varying(own) - {axis}:
                    tape.is_risky = other >= 0
                across = merge(tape, across, _without(tape, own, axis, call.name), call.name)
            else:
                refuse_fixed(tape, own, pieces, call.out.dim(), call.name)
                across = merge(tape, across, own, call.name)
    shape = [1] * call.out.dim()
    rows = []
    for piece, own in zip(pieces, joined, strict=True):
        shape[axis] = piece.shape[axis]
        rows.append(own.expand(shape))
    tape.write(call.out, [torch.cat(rows, axis), *across])


def _without(tape: Tape, own: Tensor, axis: int, use: str) -> Tensor:
    """Unite what differs along an axis of pieces that others are joined to."""
    first = own.amax(axis, keepdim=True)
    tape.unite(first.expand_as(own), own, use)
    return first


@rule(aten.stack)
def stack(tape: Tape, findings: Findings, call: Call) -> None:
    """A new axis of pieces: channels at equal positions count alike, and are the same once they are summed."""
    pieces, axis = call.args[0], call.arg(1, "dim", 0) % call.out.dim()
    axes = sorted({a for piece in pieces for own in tape.read(piece) for a in varying(own)})
    fields = []
    for along in axes:
        rows = []
        for piece in pieces:
            labels = tape.along(piece, along, call.name)
            rows.append(labels.view([-1 if a == along else 1 for a in range(piece.dim())]))
        own = compact(torch.stack(rows, axis))
        if own.shape[axis] > 1:
            tape.pieces(own, axis)
        fields.append(own)
    tape.write(call.out, fields)


@rule(aten.pixel_shuffle, aten.pixel_unshuffle)
def pixel_shuffle(tape: Tape, findings: Findings, call: Call) -> None:
    """Move channels to space or back: those that come to lie in one channel go together."""
    x, factor = call.args[0], call.args[1]
    labels = tape.along(x, x.dim() - 3, call.name)
    tape.only_along(x, {x.dim() - 3}, call.name)
    if call.func.overloadpacket is aten.pixel_shuffle:
        rows = labels.view(-1, factor * factor)
        tape.unite(rows[:, :1].expand_as(rows), rows, call.name)
        moved = rows[:, 0]
    else:
        moved = labels.repeat_interleave(factor * factor)
    tape.write(call.out, [moved.view([-1 if a == x.dim() - 3 else 1 for a in range(x.dim())])])


@rule(aten.index_select, aten.index, aten.gather)
def pick(tape: Tape, findings: Findings, call: Call) -> None:
    """Keep an axis whole that is indexed by numbers; the others keep their labels."""
    source, out = call.args[0], call.out
    packet = call.func.overloadpacket
    indices = call.args[1]
    if packet is aten.index and sum(index is not None for index in indices) != 1:
        tape.freeze_tensors(call.inputs, f"{call.name} picks channels by number")
        return
    taken = next(a for a, i in enumerate(indices) if i is not None) if packet is aten.index else call.args[1]
    axis = int(taken) % source.dim()
    fields = []
    for own in tape.read(source):
        if axis in varying(own):
            tape.freeze(own, f"{call.name} picks channels by number")
        elif out.dim() == source.dim() and all(out.shape[a] == source.shape[a] for a in varying(own)):
            fields.append(own)
        else:
            tape.freeze(own, f"{call.name} picks channels by number")
    tape.write(out, fields)
    index = indices[axis] if packet is aten.index else call.args[2]
    tape.freeze_tensors([index], f"{call.name} picks channels by number")
