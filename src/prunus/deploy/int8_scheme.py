"""What ONNX Runtime makes 8-bit integers of, read off the file that it wrote: nothing here guesses its rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LARGEST_WEIGHT = 64
"""Of an int8 weight. Two products with the largest activation, 2 · 255 · 64, are just below 2¹⁵: AVX2 adds such pairs
in 16 bits and cuts off what is more."""

_QUANTIZED = "_quantized"  # what ONNX Runtime adds to the name of a weight


@dataclass(frozen=True)
class Grid:
    """What the 256 values of a uint8 activation stand for: (integer − zero_point) · scale, zero_point in 0..255."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Int8Scheme:
    """Which tensors of a network are 8 bits wide, by the names that they have in torch's ONNX program.

    `activations` have one grid each. `weights` are symmetric, from −64 to 64, with a scale of their own for every
    index of an axis, or one in all where the axis is None. Scales of weights follow from the weights. `constants` are
    what is added to an activation, or multiplied with one, and lies on a grid as activations do.
    """

    activations: Mapping[str, Grid]
    weights: Mapping[str, int | None]
    constants: Mapping[str, Grid] = field(default_factory=dict)


def read_scheme(model: Any) -> Int8Scheme:
    """Read the scheme off an ONNX model that `quantized` returned, tensors under their names."""
    from onnx import TensorProto, numpy_helper

    constants = {constant.name: constant for constant in model.graph.initializer}

    def number(name: str) -> Any:
        return numpy_helper.to_array(constants[name]).item()

    def grid(node: Any) -> Grid:
        return Grid(float(number(node.input[1])), int(number(node.input[2])))

    activations: dict[str, Grid] = {}
    weights: dict[str, int | None] = {}
    others: dict[str, Grid] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            activations[node.input[0]] = grid(node)
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight, scale = (constants[name] for name in node.input[:2])
            name = weight.name.removesuffix(_QUANTIZED)
            if weight.data_type == TensorProto.INT8:  # biases are int32, and lose a thousandth of a step
                axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
                weights[name] = axes[0] if scale.dims and axes else None
            elif weight.data_type == TensorProto.UINT8:
                others[name] = grid(node)
    return Int8Scheme(activations, weights, others)
