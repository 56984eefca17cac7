"""Operations over space, reductions, and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.findings import Call, Findings, SizeAttribute
from prunus.graph.rules.table import aten, rule
from prunus.graph.tape import Tape, varying


@rule(
    *(aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d),
    *(aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.reflection_pad2d, aten.replication_pad2d),
)
def spatial(tape: Tape, findings: Findings, call: Call) -> None:
    """Rows and columns change, channels do not."""
    x = call.args[0]
    tape.only_along(x, set(range(x.dim() - 2)), call.name)
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
