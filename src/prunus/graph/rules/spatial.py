"""Operations over space, reductions, and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.graph.findings import Call, Findings
from prunus.graph.labels import varying
from prunus.graph.rules.mixing import mixes, reduced
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape

_POOLS = (
    *(aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.avg_pool2d, aten.avg_pool3d),
    *(aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d),
    *(aten.adaptive_max_pool2d, aten.adaptive_max_pool3d),
)
_RESIZES = tuple(
    getattr(aten, name)
    for name in (
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d"),
        *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d"),
        *("_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    )
)
_PADS = tuple(getattr(aten, f"{kind}_pad{n}d") for kind in ("reflection", "replication") for n in (1, 2, 3))


@rule(*_POOLS, *_RESIZES, *_PADS)
def spatial(tape: Tape, findings: Findings, call: Call) -> None:
    """Rows and columns change, channels do not."""
    x = call.args[0]
    rank = {"1": 1, "2": 2, "3": 3}[next(c for c in reversed(call.name) if c.isdigit())]
    kept = set(range(x.dim() - rank))
    tape.only_along(x, kept, call.name)
    fields = [own for own in tape.read(x) if varying(own) & kept]
    results = []
    for own in fields:
        for axis in varying(own) - kept:
            first = own.amax(axis, keepdim=True)
            tape.unite(first.expand_as(own), own, call.name)
            own = first
        results.append(own)
    for out in call.outputs:
        tape.write(out, results)


@rule(
    *(aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean, aten.std_mean),
    *(aten.linalg_vector_norm, aten.norm, aten.logsumexp, aten.prod, aten.argmax, aten.argmin, aten.any, aten.all),
)
def reduction(tape: Tape, findings: Findings, call: Call) -> None:
    """Reduced axes go; over channels, the value is that of those that stay."""
    x, out = call.args[0], call.outputs[0]
    place = 2 if call.func.overloadpacket in (aten.linalg_vector_norm, aten.norm) else 1
    given = call.arg(place, "dim")
    dims = set(range(x.dim())) if given is None or given == [] else {d % x.dim() for d in _as_list(given)}
    fields, mixed = [], False
    for own in tape.read(x):
        left = reduced(tape, own, dims, call.name)
        if left is None:
            mixed = True
        else:
            fields.append(left if out.dim() == x.dim() else left.squeeze(tuple(sorted(dims))))
    if any(own.dim() != out.dim() for own in fields):
        fields = []
    if mixed:
        mixes(tape, findings, call, [tuple(fields)] * len(call.outputs))
    else:
        for result in call.outputs:
            tape.write(result, fields)


def _as_list(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@rule(aten.max_unpool2d, aten.max_unpool3d)
def unpool(tape: Tape, findings: Findings, call: Call) -> None:
    """Every channel goes back to where its own indices say."""
    x, indices = call.args[:2]
    axis = x.dim() - (2 if "2d" in call.name else 3) - 1
    tape.only_along(x, set(range(axis + 1)), call.name)
    labels = tape.unite(tape.along(x, axis, call.name), tape.along(indices, axis, call.name), call.name)
    tape.write(call.out, [labels.view([-1 if a == axis else 1 for a in range(x.dim())])])


@rule(aten.grid_sampler_2d, aten.grid_sampler_3d)
def sample(tape: Tape, findings: Findings, call: Call) -> None:
    """Take every channel at the same positions."""
    tape.freeze_tensors([call.args[1]], f"{call.name} reads positions from it")
    tape.only_along(call.args[0], {1}, call.name)
    labels = tape.along(call.args[0], 1, call.name)
    tape.write(call.out, [labels.view([-1 if a == 1 else 1 for a in range(call.out.dim())])])


@rule(aten._softmax, aten._log_softmax, aten.cumsum)
def over_one_axis(tape: Tape, findings: Findings, call: Call) -> None:
    """Over channels, computed over those that stay; over other axes, element by element."""
    x, axis = call.args[0], call.args[1] % call.args[0].dim()
    fields = []
    over = False
    for own in tape.read(x):
        if varying(own) - {axis} and axis in varying(own) and tape.carrier(own) != axis:
            first = own.amax(axis, keepdim=True)  # a softmax over pieces: their channels meet
            tape.unite(first.expand_as(own), own, call.name)
            fields.append(first)
        else:
            over = over or axis in varying(own)
            fields.append(own)
    if over:
        ordered = axis if call.func.overloadpacket is aten.cumsum else None
        mixes(tape, findings, call, [tuple(fields)], ordered=ordered)
    else:
        tape.write(call.out, fields, is_compact=True)


@rule(aten.constant_pad_nd)
def constant_pad(tape: Tape, findings: Findings, call: Call) -> None:
    """Keep channels under padding in space; padded channels are channels too where the module stores their number."""
    x, pads, out = call.args[0], call.args[1], call.out
    fields = list(tape.read(x))
    for back in range(len(pads) // 2):
        axis, pair = x.dim() - 1 - back, (pads[2 * back], pads[2 * back + 1])
        if pair == (0, 0):
            continue
        for number, own in enumerate(fields):
            if axis in varying(own):
                fields[number] = _padded(tape, call, own, axis, pair)
    tape.write(out, fields)


def _padded(tape: Tape, call: Call, own: Tensor, axis: int, pair: tuple[int, int]) -> Tensor:
    """Put margins beside a field: channels of their own, or positions that stay where their number is found fixed."""
    tape.is_risky = True
    if min(pair) < 0:
        tape.freeze(own, f"{call.name} cuts or pads it by a fixed number")
    if min(pair) < 0 or varying(own) != {axis}:
        pads = [p if own.dim() - 1 - i // 2 == axis else 0 for i, p in enumerate(call.args[1])]
        return torch.nn.functional.pad(own, pads, value=-1)
    fixed = tape.hinted("tied")
    shape = [-1 if a == axis else 1 for a in range(own.dim())]
    sides = [torch.full((size,), -1) if fixed or not size else tape.new_labels("", 0, size) for size in pair]
    return torch.cat([sides[0].view(shape), own, sides[1].view(shape)], axis)
