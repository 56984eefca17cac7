"""What gradients say of each filter: the first-order change of the loss, and how far outputs move with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.graph.members import Members
from prunus.graph.running import DispatchMode, attention_by_products, restored

_NO_GRADIENTS = "the network records no gradients; does its forward pass run under torch.no_grad()?"


def first_order(
    model: nn.Module, graph: ChannelGraph, members: Members, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Return Σ over each filter of weight · gradient of the batch's mean cross-entropy, (C_out,), by weight name.

    The network runs in evaluation mode on copies of its tensors: no parameter gets a gradient or is asked for one.

    Raises:
        ConfigError: the network's output and the labels make no cross-entropy.
    """
    tensors = dict(members.tensors)
    layers = [layer for layer in graph.layers if (layer.channels >= 0).any()]
    wanted = {id(tensors[layer.weight]) for layer in layers}
    with torch.inference_mode(False), torch.enable_grad(), attention_by_products():
        state = {
            id(tensor): tensor.detach().clone().requires_grad_(id(tensor) in wanted) for tensor in tensors.values()
        }
        with restored(members, False, state):
            loss = _loss(model(images.clone()), labels.clone())
        weights = [state[id(tensors[layer.weight])] for layer in layers]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True) if weights else ()
    found = {}
    for layer, weight, gradient in zip(layers, weights, gradients, strict=True):
        product = torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
        found[layer.weight] = layer.filters(product).double().flatten(1).sum(1).cpu()
    return found


def sensitivity(
    model: nn.Module, graph: ChannelGraph, members: Members, images: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return how far the network's outputs move with those of each layer, (2, C_out), by the name of its weight.

    That is the square of the gradient of Σ z · v by the layer's output, with z the network's outputs and v normal noise
    from the generator; it is expected to be the sum over z of squared gradients. First of what moves all positions of
    an image alike, (Σ over positions of the gradient)², then of what moves each for itself, Σ over positions of (the
    gradient)². Both are summed over images. Layers whose outputs reach those of the network by no convolution or
    product of matrices with their weight are left out. A product of matrices takes every row for an image.

    Raises:
        ConfigError: the network returns something else than one tensor of numbers, or records no gradients.
    """
    tensors = dict(members.tensors)
    wanted = {id(tensors[layer.weight]): layer.weight for layer in graph.layers}
    with torch.inference_mode(False), torch.enable_grad(), attention_by_products():
        state = {
            id(tensor): tensor.detach().clone().requires_grad_(id(tensor) in wanted) for tensor in tensors.values()
        }
        x = images.clone().requires_grad_(images.is_floating_point())
        watch = _Backward({state[own].data_ptr(): name for own, name in wanted.items()})
        with restored(members, False, state):
            output = model(x)
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise ConfigError(
                    "refit_error measures how far a network's outputs move, a tensor of numbers, but this one returns "
                    f"{type(output).__name__}; wrap it so that it returns its scores alone, or use another criterion."
                )
            if not output.requires_grad:
                raise ConfigError(_NO_GRADIENTS)
            noise = torch.randn(output.shape, generator=generator)
            with watch:
                by = [one for one in (x, *(state[own] for own in wanted)) if one.requires_grad]
                torch.autograd.grad((output * noise.to(output)).sum(), by, allow_unused=True)
    layers = {layer.weight: layer for layer in graph.layers}
    return {name: sums for name, sums in watch.sums.items() if sums.shape[1] == len(layers[name].channels)}


class _Backward(DispatchMode):
    """Adds up the squares of what the backward pass hands to layers, by where their weights lie."""

    def __init__(self, places: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.places = places
        self.sums: dict[str, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self._add(args[0], args[2])
        elif func is torch.ops.aten.mm.default and args[1].is_contiguous():  # of the output's gradient and the weight
            self._add(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _add(self, gradient: Tensor, weight: Tensor) -> None:
        name = self.places.get(weight.data_ptr())
        if name is not None:
            by_position = gradient.double().reshape(*gradient.shape[:2], -1)
            alike, apart = by_position.sum(2).square().sum(0), by_position.square().sum((0, 2))
            self.sums[name] = self.sums.get(name, 0) + torch.stack([alike, apart]).cpu()


def _loss(output: object, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy; say what is wrong where there is none."""
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"gradients are those of the cross-entropy of class scores, (N, classes), but the network returns "
            f"{type(output).__name__}; wrap it so that it returns its scores alone, or use a criterion without labels."
        )
    try:
        loss = F.cross_entropy(output, labels)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"the network's output {tuple(output.shape)} and the labels {tuple(labels.shape)} of a calibration batch "
            f"make no cross-entropy ({error}); labels are class numbers, (N,), int64."
        ) from error
    if not loss.requires_grad:
        raise ConfigError(_NO_GRADIENTS)
    return loss
