"""The table of rules, and which operations are non-linearities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverloadPacket

from prunus.graph.findings import Call, Findings
from prunus.graph.tape import Tape

aten = torch.ops.aten

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


NONLINEARITIES = frozenset(
    getattr(aten, name + suffix)
    for name in ("relu", "hardtanh", "leaky_relu", "elu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
    for suffix in ("", "_")
) | {aten.gelu, aten.clamp, aten.clamp_min}
"""Element-wise operations whose results count as "after the non-linearity"."""

_BOUNDED = frozenset({aten.hardtanh, aten.hardtanh_, aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_min_})
_RECTIFIERS = frozenset(
    {aten.relu, aten.relu_, aten.silu, aten.silu_, aten.hardswish, aten.hardswish_, aten.gelu, aten.gelu_}
)


def rectifies(call: Call) -> bool:
    """Say whether an operation is ReLU, ReLU6 or a smooth relative of theirs."""
    packet = call.func.overloadpacket
    if packet not in _BOUNDED:
        return packet in _RECTIFIERS
    least = call.arg(1, "min")
    return isinstance(least, (int, float)) and least == 0
