"""Operations that only move elements: the same operation, run on the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.graph.findings import Call, Findings
from prunus.graph.labels import compact, varying
from prunus.graph.places import place_of_call
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape


@rule(
    *(aten.permute, aten.transpose, aten.t, aten.expand, aten.squeeze, aten.unsqueeze, aten.alias, aten.detach),
    *(aten.repeat, aten.diagonal, aten.unfold),
)
def movement(tape: Tape, findings: Findings, call: Call) -> None:
    """Every element keeps its label, wherever it goes."""
    source = call.args[0]
    if call.func.overloadpacket in (aten.repeat, aten.unfold, aten.diagonal) and tape.read(source):
        tape.is_risky = True
    moved = [call.func(own.expand(source.shape), *call.args[1:], **call.kwargs) for own in tape.read(source)]
    tape.write(call.out, moved)
    _note_even(tape, call)


def _note_even(tape: Tape, call: Call) -> None:
    """Say along which axes the result is the same everywhere: those that one value was spread over."""
    source, out, packet = call.args[0], call.out, call.func.overloadpacket
    offset = out.dim() - source.dim()
    even = tape.even(source)
    if packet in (aten.expand, aten.repeat):
        single = {axis + offset for axis, size in enumerate(source.shape) if size == 1} | set(range(offset))
        tape.write_even(out, single | {axis + offset for axis in even})
    elif even:
        marks = torch.zeros([2 if axis in even else 1 for axis in range(source.dim())], dtype=torch.bool)
        if packet in (aten.permute, aten.transpose, aten.t, aten.squeeze, aten.unsqueeze, aten.alias, aten.detach):
            moved = call.func(marks, *call.args[1:], **call.kwargs)
            tape.write_even(out, [axis for axis, size in enumerate(moved.shape) if size == 2])


@rule(aten.flip, aten.roll)
def turn(tape: Tape, findings: Findings, call: Call) -> None:
    """Channels may change places; where they do, the smaller network is asked for its own order."""
    source = call.args[0]
    for own in tape.read(source):
        axes = call.args[1] if call.func.overloadpacket is aten.flip else call.arg(2, "dims", [])
        tape.reorders = tape.reorders or bool({axis % source.dim() for axis in axes} & varying(own))
    movement(tape, findings, call)


@rule(aten.view, aten._unsafe_view)
def view(tape: Tape, findings: Findings, call: Call) -> None:
    """Lay labels out anew. Where one axis becomes several, the longest carries the channels, the others are pieces."""
    source, out = call.args[0], call.out
    if tape.even(source):
        pairs = [(old, new) for old, new in _segments(tuple(source.shape), tuple(out.shape)) if len(new) == 1]
        tape.write_even(out, [new[0] for old, new in pairs if tape.even(source) & set(old)])
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
        main = tape.main_axis(moved, after) if len(after) > len(before) else None
        whole, axes = (moved, after) if len(after) >= len(before) else (own, before)
        runs = main if main is not None else tape.carrier(whole, axes)
        tape.reorders = tape.reorders or any(axis > runs for axis in axes)
        if main is not None:
            tape.splits.setdefault((place_of_call(), tape.op), []).append(moved)
            if main in after:
                tape.laid_out(moved, main)
            for axis in after - {main}:
                tape.pieces(moved, axis)
    sizes = tape.given or []
    if len(after) > 1 or len(sizes) not in (0, moved.dim()) or any(sizes[axis] > 0 for axis in after if sizes):
        tape.is_risky = True  # a size of channels may be written as a number


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
            _note_cut(tape, call, own, axis)
        full = own.expand([n if a == axis or own.shape[a] > 1 else 1 for a, n in enumerate(source.shape)])
        parts = call.func(full, *call.args[1:], **call.kwargs)
        for result, part in zip(results, [parts] if isinstance(parts, Tensor) else parts, strict=True):
            result.append(part)
    for out, fields in zip(call.outputs, results, strict=True):
        tape.write(out, fields)
        if tape.even(source) and out.dim() == source.dim():
            positions = call.func(
                torch.arange(source.shape[axis]).view([-1 if a == axis else 1 for a in range(source.dim())]),
                *call.args[1:],
                **call.kwargs,
            )
            if isinstance(positions, Tensor):
                tape.parents[id(out)] = (out, source, {axis: positions.reshape(-1)})
        tape.write_even(out, [a for a in tape.even(source) if out.dim() == source.dim()])


def _note_cut(tape: Tape, call: Call, own: Tensor, axis: int) -> None:
    """Say how the pieces of one field count together."""
    tape.is_risky = True
    if varying(own) != {axis} and tape.carrier(own) != axis:
        return  # it takes some of a fixed number of pieces
    if call.func.overloadpacket in (aten.select, aten.unbind):
        tape.freeze(own, f"{call.name} cuts it at a fixed position")
        return
    length = own.shape[axis]
    positions = torch.arange(length).view([-1 if a == axis else 1 for a in range(own.dim())])
    cuts = call.func(positions, *call.args[1:], **call.kwargs)
    parts = [part.reshape(-1) for part in ([cuts] if isinstance(cuts, Tensor) else cuts)]
    taken = torch.zeros(length, dtype=torch.bool)
    for part in parts:
        taken[part] = True
        tape.reorders = tape.reorders or bool((part.diff() != 1).any())
    if not bool(taken.all()):
        parts.append((~taken).nonzero().reshape(-1))
    rows = own.movedim(axis, -1).reshape(-1, length)
    labels = [rows[:, part] for part in parts if len(part) and bool((rows[:, part] >= 0).any())]
    if len(labels) == 1 or _stored(tape, call, length):  # the only one with channels, or of a size of its own
        tape.separate(labels)
    else:
        tape.unequal(labels)


def _stored(tape: Tape, call: Call, length: int) -> bool:
    """Say whether a running module stores the sizes of these pieces, so that each may be set by itself."""
    if tape.hinted("tied"):
        return False
    if call.func.overloadpacket is aten.split_with_sizes:
        sizes = [int(size) for size in call.args[1]]
        return len(set(sizes)) > 1 and (_holds(tape, sizes) or all(_holds(tape, size) for size in sizes))
    if call.func.overloadpacket is aten.slice:
        bounds = [bound for bound in call.args[2:4] if isinstance(bound, int) and 0 < bound < length]
        return bool(bounds) and call.arg(4, "step", 1) == 1 and all(_holds(tape, bound) for bound in bounds)
    return False


def _holds(tape: Tape, size: int | list[int]) -> bool:
    """Say whether one of the modules that run has an attribute that equals this."""
    for _, module in tape.modules:
        for value in vars(module).values():
            if isinstance(size, int) and type(value) is int and value == size:
                return True
            if isinstance(size, list) and isinstance(value, (list, tuple)) and list(value) == size:
                return True
    return False


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


@rule(aten.as_strided, aten.as_strided_)
def strided(tape: Tape, findings: Findings, call: Call) -> None:
    """Lay a tensor of the same shape out in memory otherwise."""
    x, out = call.args[0], call.out
    if list(call.args[1]) == list(x.shape):
        tape.write(out, tape.read(x), is_compact=True)
    else:
        tape.freeze_tensors([x], f"{call.name} reads memory at numbered positions")
