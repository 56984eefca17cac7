"""What gradients say of each filter: the first-order change of the loss, and how sharply the loss bends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.graph.members import Members
from prunus.graph.running import DispatchMode, attention_by_products, restored


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


def curvature(model: nn.Module, graph: ChannelGraph, members: Members, images: Tensor) -> dict[str, Tensor]:
    """Return Σ over images and positions of the squared gradient of the loss by each layer's output, by weight name.

    The loss of an image is the cross-entropy with a class that is drawn by the probabilities which the network itself
    gives: what is returned is the diagonal of the Fisher information of the outputs, (C_out,), which needs no labels
    (Kunstner et al. 2019, arXiv:1905.12558, on why they would be no substitute). Layers whose outputs reach no loss, or
    by another operation than a convolution or a product of matrices, are left out.

    Raises:
        ConfigError: the network's output is not class scores.
    """
    tensors = dict(members.tensors)
    wanted = {id(tensors[layer.weight]): layer.weight for layer in graph.layers}
    draw = torch.Generator().manual_seed(len(images))
    with torch.inference_mode(False), torch.enable_grad(), attention_by_products():
        state = {
            id(tensor): tensor.detach().clone().requires_grad_(id(tensor) in wanted) for tensor in tensors.values()
        }
        places = {state[own].data_ptr(): name for own, name in wanted.items()}
        x = images.clone().requires_grad_(images.is_floating_point())
        with restored(members, False, state):
            output = model(x)
            scores = output.detach() if isinstance(output, Tensor) else torch.zeros(0)
            if scores.dim() != 2:
                raise ConfigError(
                    "refit_loss looks at the cross-entropy of class scores, (N, classes), but the network returns "
                    f"{tuple(scores.shape) if isinstance(output, Tensor) else type(output).__name__}; wrap it so that "
                    "it returns its scores alone, or use another criterion."
                )
            classes = torch.multinomial(scores.float().softmax(1).cpu(), 1, generator=draw)[:, 0]
            loss = _loss(output, classes.to(scores.device)) * len(scores)
            watch = _Backward(places)
            with watch:
                torch.autograd.grad(loss, [x, *(state[own] for own in wanted)], allow_unused=True)
    layers = {layer.weight: layer for layer in graph.layers}
    return {name: sums for name, sums in watch.sums.items() if len(sums) == len(layers[name].channels)}


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
            squares = gradient.double().square().movedim(1, 0).flatten(1).sum(1).cpu()
            self.sums[name] = self.sums.get(name, 0) + squares


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
        raise ConfigError("the network records no gradients; does its forward pass run under torch.no_grad()?")
    return loss
