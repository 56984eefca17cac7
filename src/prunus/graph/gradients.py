"""The first-order change of the loss that each filter stands for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.graph.members import Members
from prunus.graph.running import attention_by_products, restored


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
