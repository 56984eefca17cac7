"""BatchNorm folded into the layer before it: in evaluation mode both are one affine map, exact to rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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
LAYERS = _CONVOLUTIONS | _TRANSPOSED | {_LINEAR}
"""Operations of a captured network whose second argument is a weight and whose third is a bias."""


@dataclass(frozen=True)
class Fold:
    """A BatchNorm that went into the layer before it: what the new tensors are called, and what they are made of.

    Names are those of the network that was captured; a bias, γ or β that it does not have is None.
    `groups` is 0 but for a transposed convolution, whose weight is (C_in, C_out/groups, ...).
    """

    new_weight: str
    new_bias: str
    weight: str
    bias: str | None
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float
    groups: int = 0

    def tensors(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the new tensors of the stored ones, by their names: γ / √(variance + ε) times the weight, and so on.

        Gradients flow through it, and sums have the type of the tensors that are given.
        """
        mean = stored[self.mean]
        scale = (stored[self.variance] + self.eps).rsqrt()
        if self.gamma is not None:
            scale = scale * stored[self.gamma]
        shift = -mean * scale if self.bias is None else (stored[self.bias] - mean) * scale
        if self.beta is not None:
            shift = shift + stored[self.beta]
        return {self.new_weight: self._scaled(stored[self.weight], scale), self.new_bias: shift}

    def _scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Multiply every output channel of a weight by its scale."""
        if not self.groups:
            return weight * scale.view(-1, *(1,) * (weight.ndim - 1))
        parts = weight.unflatten(0, (self.groups, -1))
        scaled: Tensor = parts * scale.view(self.groups, 1, -1, *(1,) * (weight.ndim - 2))
        return scaled.flatten(0, 1)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors that the new ones are made of."""
        names = (self.weight, self.bias, self.gamma, self.beta, self.mean, self.variance)
        return tuple(name for name in names if name is not None)


def fold_batchnorm(network: GraphModule) -> tuple[Fold, ...]:
    """Fold every BatchNorm of a captured network into the convolution or linear layer before it, in place.

    A layer is folded whose output nothing else sees, and whose weight is stored. The others stay: in DenseNet, for one,
    BatchNorm comes before the convolution. Sums are made in float64.

    Returns:
        What was folded.
    """
    norms = [node for node in network.graph.nodes if node.target is _ATEN.batch_norm.default]
    folded = tuple(fold for number, norm in enumerate(norms) if (fold := _fold(network, norm, number)))
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


def _fold(network: GraphModule, norm: Node, number: int) -> Fold | None:
    layer, *stored = norm.args[:5]
    training, eps = norm.args[5], norm.args[7]
    if training or not isinstance(layer, Node) or len(layer.users) != 1 or not _foldable(layer):
        return None
    given = (layer.args[1], _bias(layer), *stored)
    weight, bias, gamma, beta, mean, variance = (_name(argument) for argument in given)
    if weight is None or mean is None or variance is None:
        return None
    if any(_name(argument) is None for argument in given if argument is not None):
        return None  # one of them is computed
    # New tensors under new names: another layer may read the old ones.
    owner = weight.rpartition(".")[0]
    new = (f"{owner}." if owner else "") + f"folded{number}"
    fold = Fold(f"{new}_weight", f"{new}_bias", weight, bias, gamma, beta, mean, variance, _number(eps), _groups(layer))
    values = {name: _value(network, name) for name in fold.sources}
    computed = fold.tensors({name: value.double() for name, value in values.items()})
    with network.graph.inserting_before(layer):
        nodes = [_store(network, name, value.to(values[weight].dtype)) for name, value in computed.items()]
    layer.args = (layer.args[0], *nodes, *layer.args[3:])
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
    norm.replace_all_uses_with(layer)
    network.graph.erase_node(norm)
    return fold


def _foldable(layer: Node) -> bool:
    if layer.target is _LINEAR:
        shape = layer.meta["val"].shape if "val" in layer.meta else ()
        return len(shape) == 2  # with more axes BatchNorm's channels are not the features
    return layer.target in _CONVOLUTIONS or layer.target in _TRANSPOSED


def _bias(layer: Node) -> Any:
    return layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")


def _name(argument: Any) -> str | None:
    """Return the name of the stored tensor that an argument is, or None where there is none or it is computed."""
    return str(argument.target) if isinstance(argument, Node) and argument.op == "get_attr" else None


def _value(network: GraphModule, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    value = getattr(network.get_submodule(owner), leaf)
    assert isinstance(value, Tensor)
    return value.detach()


def _number(value: Any) -> float:
    return float(value)


def _groups(layer: Node) -> int:
    """Return the groups of a transposed convolution, 0 for any other layer."""
    if layer.target not in _TRANSPOSED:
        return 0
    at = _GROUPS_OF_TRANSPOSED
    groups = layer.args[at] if len(layer.args) > at else layer.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    return groups


def _store(network: GraphModule, name: str, value: Tensor) -> Node:
    owner, _, leaf = name.rpartition(".")
    network.get_submodule(owner).register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    return network.graph.get_attr(name)


def count_operations(network: GraphModule) -> Counter[str]:
    """Count a captured network's operations by name, such as ``aten.conv2d.default``."""
    return Counter(str(node.target) for node in network.graph.nodes if node.op == "call_function")
