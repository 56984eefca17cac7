"""Fake quantisation: a network that computes in float32 what its file with 8-bit integers will, and can be trained so.

The graph is the one that torch writes as ONNX, BatchNorm folded, and where it rounds is read off a file that ONNX
Runtime has quantised. Its weights are computed from the network's own, so that what is trained is the network that was
given, with its BatchNorm's statistics as they are, and any exporter takes it afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.graph import CodeGen

from prunus.deploy.capturing import Captured, quietly
from prunus.deploy.formats.onnx import INPUT
from prunus.deploy.int8_scheme import LARGEST_WEIGHT, Grid, Int8Scheme

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node

_GRID = "grid_"  # before the name of the activation


class Int8Simulation(nn.Module):
    """A network as its ONNX file with 8-bit integers computes it, (N, C, H, W) → (N, classes), with gradients.

    Weights are rounded to int8, symmetric, by output channel, with the scale that they have at the moment; activations
    to uint8 on a grid that stays. Rounding has the gradient of the identity, and none where a value lies outside the
    grid (straight-through estimator: Jacob 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342). BatchNorm
    is folded with its running statistics, which do not move; there is no dropout, and both modes compute the same.

    Attributes:
        network: the network itself, whose parameters are the ones that are trained.
    """

    def __init__(self, network: nn.Module, program: Any, captured: Captured, scheme: Int8Scheme) -> None:
        """Put rounding into the graph of a network.

        Args:
            network: what `captured` was made of; it is trained in place.
            program: the ONNX program of torch that was made of `captured`.
            captured: its graph.
            scheme: where to round, as `read_scheme` returns it.
        """
        super().__init__()
        self.network = network
        self._weights, self._folds = dict(scheme.weights), captured.folds
        self._grids = dict(scheme.constants)
        with quietly():
            graph_module = program.exported_program.module(check_guards=False)
        graph: Graph = graph_module.graph
        for node in [node for node in graph.nodes if node.op != "get_attr"]:
            name = INPUT if node.op == "placeholder" else node.name
            if name in scheme.activations:
                _round_after(graph_module, node, name, scheme.activations[name])
        self._names = _lift_tensors(graph)
        graph.set_codegen(CodeGen())  # plain tensors in and out
        self._graph = torch.fx.GraphModule(graph_module, graph)
        own = {*_stored(network), *(name for fold in captured.folds for name in (fold.new_weight, fold.new_bias))}
        tensors = dict(graph_module.state_dict(keep_vars=True)) | dict(program.exported_program.constants)
        self._constants = {name: f"constant{number}" for number, name in enumerate(self._names) if name not in own}
        for name, buffer in self._constants.items():
            self.register_buffer(buffer, tensors[name].detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        stored = _stored(self.network) | {name: getattr(self, buffer) for name, buffer in self._constants.items()}
        for fold in self._folds:
            stored |= fold.tensors(stored)
        for name, axis in self._weights.items():
            if name in stored:
                stored[name] = round_weight(stored[name], axis)
        for name, grid in self._grids.items():
            if name in stored:
                stored[name] = torch.fake_quantize_per_tensor_affine(stored[name], grid.scale, grid.zero_point, 0, 255)
        (logits,) = self._graph(images, *(stored[name] for name in self._names))
        assert isinstance(logits, Tensor)
        return logits

    @property
    def grids(self) -> dict[str, tuple[float, int]]:
        """Scale and zero point of every activation, by its name in the ONNX program."""
        found = {}
        for name, grid in self._graph.named_children():
            assert isinstance(grid, RoundActivation)
            found[name.removeprefix(_GRID)] = (float(grid.scale), int(grid.zero_point))
        return found


class RoundActivation(nn.Module):
    """Round an activation to the uint8 grid that it has in the file."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid) -> None:
        """Begin with the grid that was measured."""
        super().__init__()
        self.register_buffer("scale", torch.tensor(grid.scale))
        self.register_buffer("zero_point", torch.tensor(grid.zero_point, dtype=torch.int32))

    def forward(self, values: Tensor) -> Tensor:
        """Return the nearest values on the grid."""
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, 0, 255)


def round_weight(weight: Tensor, axis: int | None) -> Tensor:
    """Round a weight to int8, symmetric, with a scale for every index of an axis, or one in all.

    The largest absolute value is LARGEST_WEIGHT steps.
    """
    flat = weight.detach().reshape(1, -1) if axis is None else weight.detach().transpose(0, axis).flatten(1)
    scale = flat.abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / LARGEST_WEIGHT
    zero = torch.zeros_like(scale, dtype=torch.int32)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(weight, scale[0], zero[0], -LARGEST_WEIGHT, LARGEST_WEIGHT)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -LARGEST_WEIGHT, LARGEST_WEIGHT)


def _stored(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under all of their names."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def _round_after(network: GraphModule, node: Node, name: str, grid: Grid) -> None:
    name = _GRID + name
    network.add_module(name, RoundActivation(grid))
    users = list(node.users)
    with network.graph.inserting_after(node):
        rounded = network.graph.call_module(name, (node,))
    for user in users:
        user.replace_input_with(node, rounded)


def _lift_tensors(graph: Graph) -> list[str]:
    """Turn the tensors that a graph reads into inputs behind the images; return their names, in order."""
    names: dict[str, Node] = {}
    last = next(node for node in graph.nodes if node.op == "placeholder")
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in names:
            with graph.inserting_after(last):
                names[name] = last = graph.placeholder(f"tensor{len(names)}")
        node.replace_all_uses_with(names[name])
        graph.erase_node(node)
    return list(names)
