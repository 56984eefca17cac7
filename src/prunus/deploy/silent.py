"""Layers whose weights are all zero, as a dropped residual branch has them: files for other runtimes leave them out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from prunus.deploy.folding import LAYERS, drop_unused

_ATEN = torch.ops.aten
_ADDS = frozenset({_ATEN.add.Tensor, _ATEN.add_.Tensor})
_RELUS = frozenset({_ATEN.relu.default, _ATEN.relu_.default})
_KEEP_ZERO = _RELUS | {
    getattr(getattr(_ATEN, name), overload)
    for name, overload in (
        ("silu", "default"),
        ("silu_", "default"),
        ("gelu", "default"),
        ("hardswish", "default"),
        ("hardswish_", "default"),
        ("leaky_relu", "default"),
        ("leaky_relu_", "default"),
        ("tanh", "default"),
        ("dropout", "default"),
        ("mul", "Tensor"),
        ("mul_", "Tensor"),
    )
}
"""Operations that give zero where their first argument is."""
_CLIPS = frozenset({_ATEN.hardtanh.default, _ATEN.hardtanh_.default})


def drop_silent(network: GraphModule) -> int:
    """Leave out of a captured network what is added to something and is zero for every input, in place.

    That is what a convolution or linear layer gives without any weight or bias, through a BatchNorm that neither scales
    nor shifts. What only led there goes with it.

    Returns:
        How many sums went.
    """
    zero: set[Node] = set()
    dropped = 0
    for node in list(network.graph.nodes):
        if _is_silent(network, node, zero) and _stays(node):
            zero.add(node)
        elif node.target in _ADDS and (kept := _other(node, zero)) is not None:
            _replace(node, kept)
            dropped += 1
    if dropped:
        _drop_dead(network)
        drop_unused(network)
        network.recompile()
    return dropped


def _is_silent(network: GraphModule, node: Node, zero: set[Node]) -> bool:
    """Tell whether a node is zero for every input."""
    if node.target in LAYERS:
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        return _is_zero(network, weight) and (bias is None or _is_zero(network, bias))
    if node.target is _ATEN.batch_norm.default:
        gamma, beta, mean, training = (node.args[place] for place in (1, 2, 3, 5))
        if training or (beta is not None and not _is_zero(network, beta)):
            return False
        return _is_zero(network, gamma) or (node.args[0] in zero and _is_zero(network, mean))
    if node.target in _CLIPS:
        low, high = _argument(node, 1, -1), _argument(node, 2, 1)
        return node.args[0] in zero and bool(low <= 0 <= high)
    return node.target in _KEEP_ZERO and node.args[0] in zero


def _stays(node: Node) -> bool:
    """Tell whether a zero is one wherever it is read: nothing looks at a part of it, or writes a number into it."""
    for user in node.users:
        if user.target in _ADDS and len(user.all_input_nodes) == 2:
            if _writes(user) and user.args[0] is node and len(node.users) > 1:
                return False
        elif user.target is not _ATEN.batch_norm.default and user.target not in _KEEP_ZERO | _CLIPS:
            return False
    return True


def _argument(node: Node, place: int, default: float) -> Any:
    return node.args[place] if len(node.args) > place else default


def _is_zero(network: GraphModule, argument: Any) -> bool:
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return False
    owner, _, leaf = str(argument.target).rpartition(".")
    value = getattr(network.get_submodule(owner), leaf)
    return isinstance(value, Tensor) and not value.any()


def _other(node: Node, zero: set[Node]) -> Node | None:
    """Return what a sum is where one of its two parts is zero and no larger than the other."""
    first, second = node.args[:2]
    for part, kept in ((first, second), (second, first)):
        if (
            part in zero
            and isinstance(kept, Node)
            and _shape(kept) == _shape(node)
            and node.kwargs.get("alpha", 1) == 1
        ):
            return kept
    return None


def _replace(node: Node, kept: Node) -> None:
    """Put what is kept in the place of a sum; where that is rectified, and is already, both go."""
    if kept.target in _RELUS:
        for user in [user for user in node.users if user.target in _RELUS]:
            user.replace_all_uses_with(kept)
            node.graph.erase_node(user)
    if any(_writes(user) for user in node.users):  # it may not write into what others read
        with node.graph.inserting_before(node):
            kept = node.graph.call_function(_ATEN.clone.default, (kept,))
    node.replace_all_uses_with(kept)
    node.graph.erase_node(node)


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _drop_dead(network: GraphModule) -> None:
    """Delete what nothing reads, operations that write into such a thing included, from the last to the first."""
    for node in reversed(list(network.graph.nodes)):
        if node.op == "call_function" and not node.users and not _writes(node):
            network.graph.erase_node(node)
        elif node.op == "call_function" and not node.users and _writes(node):
            into = node.args[0]
            if isinstance(into, Node) and into.op == "call_function" and len(into.users) == 1:
                network.graph.erase_node(node)


def _shape(node: Node) -> tuple[Any, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None
