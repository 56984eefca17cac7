"""BatchNorm folded into the layer before it: in evaluation mode both are one affine map, exact to rounding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

_ATEN = torch.ops.aten
_CONVOLUTIONS = frozenset(
    getattr(getattr(_ATEN, f"conv{axes}d"), overload) for axes in (1, 2, 3) for overload in ("default", "padding")
)
_TRANSPOSED = frozenset({_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input})
_GROUPS_OF_TRANSPOSED = 6  # position of the argument
_LINEAR = _ATEN.linear.default


def fold_batchnorm(network: GraphModule) -> int:
    """Fold every BatchNorm of a captured network into the convolution or linear layer before it, in place.

    A layer is folded whose output nothing else sees, and whose weight is stored. The others stay: in DenseNet, for one,
    BatchNorm comes before the convolution. Sums are made in float64.

    Returns:
        How many were folded.
    """
    norms = [node for node in network.graph.nodes if node.target is _ATEN.batch_norm.default]
    folded = sum(_fold(network, norm, number) for number, norm in enumerate(norms))
    network.graph.eliminate_dead_code()
    drop_unused(network)
    network.recompile()
    return folded


def drop_unused(network: GraphModule) -> None:
    """Delete the parameters and buffers that no operation of a captured network reads."""
    used = {str(node.target) for node in network.graph.nodes if node.op == "get_attr" and node.users}
    for node in list(network.graph.nodes):
        if node.op == "get_attr" and not node.users:
            network.graph.erase_node(node)
    for tensors in (network.named_parameters, network.named_buffers):
        for name, _ in list(tensors(remove_duplicate=False)):
            if name not in used:
                owner, _, leaf = name.rpartition(".")
                delattr(network.get_submodule(owner), leaf)
    network.recompile()


def _fold(network: GraphModule, norm: Node, number: int) -> bool:
    layer, *stored = norm.args[:5]
    training, eps = norm.args[5], norm.args[7]
    if training or not isinstance(layer, Node) or len(layer.users) != 1 or not _foldable(layer):
        return False
    gamma, beta, mean, variance = (_value(network, argument) for argument in stored)
    weight = _value(network, layer.args[1])
    bias = _value(network, _bias(layer))
    if weight is None or mean is None or variance is None or (bias is None and _bias(layer) is not None):
        return False
    scale = (variance.double() + _number(eps)).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale if bias is None else (bias.double() - mean.double()) * scale
    if beta is not None:
        shift = shift + beta.double()
    values = {"weight": _scaled(layer, weight.double(), scale).to(weight.dtype), "bias": shift.to(weight.dtype)}
    # New tensors under new names: another layer may read the old ones.
    owner = str(layer.args[1].target).rpartition(".")[0] if isinstance(layer.args[1], Node) else ""
    with network.graph.inserting_before(layer):
        new = {kind: _store(network, owner, f"folded{number}_{kind}", value) for kind, value in values.items()}
    layer.args = (layer.args[0], new["weight"], new["bias"], *layer.args[3:])
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
    norm.replace_all_uses_with(layer)
    network.graph.erase_node(norm)
    return True


def _foldable(layer: Node) -> bool:
    if layer.target is _LINEAR:
        shape = layer.meta["val"].shape if "val" in layer.meta else ()
        return len(shape) == 2  # with more axes BatchNorm's channels are not the features
    return layer.target in _CONVOLUTIONS or layer.target in _TRANSPOSED


def _bias(layer: Node) -> Any:
    return layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")


def _value(network: GraphModule, argument: Any) -> Tensor | None:
    """Return the stored tensor that an argument is, or None where there is none or it is computed."""
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return None
    owner, _, name = str(argument.target).rpartition(".")
    value = getattr(network.get_submodule(owner), name)
    return value.detach() if isinstance(value, Tensor) else None


def _number(value: Any) -> float:
    return float(value)


def _scaled(layer: Node, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply every output channel of a weight by its scale; a transposed one has (C_in, C_out/groups, ...)."""
    if layer.target not in _TRANSPOSED:
        return weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    at = _GROUPS_OF_TRANSPOSED
    groups = layer.args[at] if len(layer.args) > at else layer.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    parts = weight.unflatten(0, (groups, -1))
    scaled: Tensor = parts * scale.view(groups, 1, -1, *(1,) * (weight.ndim - 2))
    return scaled.flatten(0, 1)


def _store(network: GraphModule, owner: str, name: str, value: Tensor) -> Node:
    network.get_submodule(owner).register_parameter(name, nn.Parameter(value, requires_grad=False))
    return network.graph.get_attr(f"{owner}.{name}" if owner else name)


def count_operations(network: GraphModule) -> Counter[str]:
    """Count a captured network's operations by name, such as ``aten.conv2d.default``."""
    return Counter(str(node.target) for node in network.graph.nodes if node.op == "call_function")
