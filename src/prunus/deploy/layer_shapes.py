"""What the layers of a network look like to a runtime: kernel, stride, size of the images, and how wide they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.graph.trace import Inputs, as_arguments

Kind = Literal["convolution", "pointwise", "depthwise", "linear"]


@dataclass(frozen=True)
class LayerShape:
    """One use of a layer, but for its widths: `size` is (H, W) of its input and `positions` H · W of its output.

    Of a linear layer, both count the rows that it is applied to. `groups` is 1, or 0 for as many as there are channels.
    """

    kind: Kind
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int] = (1, 1)
    positions: int = 1

    def build(self, inputs: int, outputs: int) -> nn.Conv2d | nn.Linear:
        """Build the layer with these widths."""
        if self.kind == "linear":
            return nn.Linear(inputs, outputs)
        groups = self.groups or inputs
        return nn.Conv2d(inputs, outputs, self.kernel, self.stride, self.padding, self.dilation, groups)

    def input_shape(self, inputs: int) -> tuple[int, ...]:
        """Return the shape of one example."""
        return (inputs,) if self.kind == "linear" else (inputs, *self.size)


@dataclass(frozen=True)
class LayerUse:
    """A use of a weight: its name in the state dict, its shape, and the widths of the whole network."""

    weight: str
    shape: LayerShape
    inputs: int
    outputs: int


def layer_uses(model: nn.Module, example_inputs: Inputs) -> list[LayerUse]:
    """Run the network on an example and list how its convolutions (2-D) and linear layers are used, in their order.

    Grouped convolutions that are not depthwise, and layers that are no modules, are left out.
    """
    uses: list[LayerUse] = []
    names = {module: name for name, module in model.named_modules(remove_duplicate=True)}

    def note(module: nn.Module, args: Sequence[Any], output: Any) -> None:
        shape = _shape_of(module, args[0], output)
        if shape is not None:
            name = names[module]
            weight: Tensor = module.weight  # type: ignore[assignment]
            depthwise = shape.kind == "depthwise"
            inputs = len(weight) if depthwise else weight.shape[1]
            uses.append(LayerUse(f"{name}.weight" if name else "weight", shape, inputs, len(weight)))

    handles = [m.register_forward_hook(note) for m in names if isinstance(m, nn.Conv2d | nn.Linear)]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(*as_arguments(example_inputs))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return uses


def _shape_of(module: nn.Module, images: Tensor, output: Tensor) -> LayerShape | None:
    if isinstance(module, nn.Linear):
        return LayerShape("linear") if images.dim() == 2 else None
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str) or module.padding_mode != "zeros" or images.dim() != 4:
        return None
    depthwise = module.groups == module.in_channels == module.out_channels and module.groups > 1
    if module.groups > 1 and not depthwise:
        return None
    pointwise = module.kernel_size == (1, 1)
    return LayerShape(
        "depthwise" if depthwise else "pointwise" if pointwise else "convolution",
        _pair(module.kernel_size),
        _pair(module.stride),
        _pair(module.padding),
        _pair(module.dilation),
        0 if depthwise else 1,
        (images.shape[2], images.shape[3]),
        output.shape[2] * output.shape[3],
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
