"""Where along the tensors of a step channels run, which these are, and which lengths may come from one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from prunus.graph.channels import Ids
from prunus.graph.labels import Spot, varying
from prunus.graph.tape import Tape

if TYPE_CHECKING:
    from prunus.graph.assemble import Assembly
    from prunus.graph.findings import Call
    from prunus.graph.recording import Recording, Steps
    from prunus.graph.sizes import Attempt, Problem


def related(problem: Problem, attempt: Attempt, equal: bool) -> list[tuple[Spot, Spot]]:
    """Pair the axes of the step that did not fit with those of its module that are as long, or so many times."""
    steps = attempt.recording.steps[problem.training]
    users = [name for name, module in problem.modules if not type(module).__module__.startswith("torch.nn")]
    scope = users[-1] if users else ""
    found: dict[bytes, tuple[Spot, int]] = {}
    here: list[tuple[Spot, int]] = []
    for index, (call, running) in enumerate(steps):
        if running is None or not (running[0] == scope or running[0].startswith(f"{scope}." if scope else "")):
            continue
        for kind, tensors in (("out", call.outputs), ("in", call.inputs)):
            for number, tensor in enumerate(tensors):
                for axis in {axis for own in attempt.recording.traced.tape.read(tensor) for axis in varying(own)}:
                    ids = axis_ids(attempt.assembly, tensor, axis)
                    if ids is not None and (ids >= 0).all():
                        spot = (problem.training, index, kind, number, axis)
                        found.setdefault(ids.tobytes(), (spot, len(ids)))
                        here += [(spot, len(ids))] if index == problem.index else []
    return [
        (spot, other)
        for spot, size in here
        for other, length in found.values()
        if other != spot and (length == size if equal else length % size == 0 or size % length == 0)
    ]


def labels_at(tape: Tape, steps: Steps, spot: Spot) -> Tensor | None:
    """Return the labels along an axis of a tensor of a step, those of the first of its pieces."""
    _, index, kind, number, axis = spot
    if index >= len(steps):
        return None
    tensors = steps[index][0].outputs if kind == "out" else steps[index][0].inputs
    for own in tape.read(tensors[number]) if number < len(tensors) else ():
        if axis in varying(own):
            return own.movedim(axis, 0).reshape(own.shape[axis], -1)[:, 0]
    return None


def spots_of(call: Call, recording: Recording) -> list[tuple[tuple[Any, ...], int]]:
    """List where along this step's tensors channels run, and how many there are: what a stored number may equal."""
    tape = recording.traced.tape
    found: list[tuple[tuple[Any, ...], int]] = []
    for kind, tensors in (("out", call.outputs), ("in", call.inputs)):
        for number, tensor in enumerate(tensors):
            axes = sorted({axis for own in tape.read(tensor) for axis in varying(own)})
            found += [((kind, number, axis), int(tensor.shape[axis])) for axis in axes]
    if call.name == "aten.slice":
        axis = call.arg(1, "dim", 0) % call.args[0].dim()
        bounds = [(place, bound) for place, bound in enumerate(call.args[2:4], 2) if type(bound) is int and bound > 0]
        found += [(("bound", place, axis), bound) for place, bound in bounds]
    if call.name == "aten.constant_pad_nd":
        for number, size in enumerate(call.args[1]):
            axis = call.out.dim() - 1 - number // 2
            if size > 0 and any(axis in varying(own) for own in tape.read(call.out)):
                found.insert(0, (("pad", number, axis), size))
    return found


def part_at(call: Call, spot: tuple[Any, ...], assembly: Assembly) -> Ids | None:
    """Return the channel ids that a spot of a step counts, −1 for what always stays."""
    if spot[0] == "bound":  # the channels before it
        bound = call.args[spot[1]] if len(call.args) > spot[1] else None
        vector = axis_ids(assembly, call.args[0], spot[2])
        return None if vector is None or type(bound) is not int or not 0 < bound <= len(vector) else vector[:bound]
    if spot[0] == "pad":  # those of a margin
        vector = axis_ids(assembly, call.out, spot[2])
        size = call.args[1][spot[1]] if spot[1] < len(call.args[1]) else 0
        if vector is None or size <= 0:
            return None
        return vector[len(vector) - size :] if spot[1] % 2 else vector[:size]
    tensors = call.outputs if spot[0] == "out" else call.inputs
    if spot[1] >= len(tensors) or spot[2] >= tensors[spot[1]].dim():
        return None
    return axis_ids(assembly, tensors[spot[1]], spot[2])


def axis_ids(assembly: Assembly, tensor: Tensor, axis: int) -> Ids | None:
    """Return the channel ids along one axis of a tensor, those of the first of its pieces; None if none varies there.

    An axis of pieces keeps its length: it reads −1.
    """
    layout = assembly.traced.layout
    for own in assembly.traced.tape.read(tensor):
        if axis not in varying(own):
            continue
        vector = own.movedim(axis, 0).reshape(own.shape[axis], -1)[:, 0].numpy()
        ids: Ids = assembly.ids[vector]
        if len(varying(own)) > 1:
            known = vector[vector >= 0]
            bundles = layout.bundle[layout.component[known]]
            others = own.movedim(axis, 0).reshape(own.shape[axis], -1)[0].numpy()
            inside = layout.bundle[layout.component[others[others >= 0]]]
            if len(bundles) and (bundles == bundles[0]).all() and not (len(inside) and (inside == inside[0]).all()):
                return np.full(len(vector), -1)
        return ids
    return None
