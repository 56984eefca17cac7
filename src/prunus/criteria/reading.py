"""Read the layers of a network: the tensors of each, and what was measured of its channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunus.criteria.calibration import ON_IMAGES, ON_LABELS, Calibration, batches_of, missing
from prunus.criteria.coupled import Consumers, coupled_norms
from prunus.criteria.elimination import refit_errors
from prunus.criteria.values import LayerValues, NormValues
from prunus.errors import ConfigError, ModelError, TraceError
from prunus.graph.channels import ChannelGraph, Layer, Norm
from prunus.graph.measuring import Measured, measure
from prunus.graph.members import named_tensors, tensor_at

Floats = npt.NDArray[np.float64]


def read_layers(
    model: nn.Module,
    graph: ChannelGraph,
    calibration: Calibration | None = None,
    needs: Collection[str] | None = None,
) -> Iterable[tuple[Layer, LayerValues]]:
    """Read the values of every layer that produces prunable channels, in float64 on the CPU.

    Args:
        model: the network that `graph` was traced from; it is left as it is.
        graph: its channel graph.
        calibration: images to measure on, or images with labels, as `prunus.score` takes them.
        needs: the optional fields of LayerValues to fill in; by default `zero_fraction`, where there is calibration.

    Raises:
        ConfigError: what is needed cannot be measured without calibration, or without labels.
        ModelError: the graph was traced from another network.
    """
    if needs is None:
        needs = () if calibration is None else ("zero_fraction",)
    return layers_of(model, graph, calibration, frozenset(needs), "the criterion", None)


def layers_of(
    model: nn.Module,
    graph: ChannelGraph,
    calibration: Calibration | None,
    needs: frozenset[str],
    criterion: str,
    scratch: Scratch | None,
) -> Iterable[tuple[Layer, LayerValues]]:
    """Read layers as `read_layers` does, for a criterion of this name; `scratch` holds their weights."""
    reader = _Reader(model, graph)
    reader.check()
    found = _measured(model, graph, calibration, needs, criterion)
    asked = not needs.isdisjoint({"consumers", "variance"})
    consumers = Consumers(graph, reader.read, reader.norm, found.variances) if asked else None
    errors = None
    if found.covariances is not None and found.sensitivity is not None:
        errors = refit_errors(graph, reader.read, found.covariances, found.sensitivity)
    norms = coupled_norms(graph, reader.read) if "coupled_norm" in needs else None
    only_weights = scratch is not None and not scratch.copies
    for layer in graph.layers:
        if (layer.channels >= 0).any():
            yield (
                layer,
                LayerValues(
                    name=layer.name,
                    weight=layer.filters(reader.read(layer.weight, scratch)),
                    bias=None if layer.bias is None or only_weights else reader.read(layer.bias),
                    norm=None if only_weights else reader.norm(layer),
                    zero_fraction=_of(found.zero_fraction, layer),
                    feature_rank=_of(found.feature_rank, layer),
                    first_order=None if found.first_order is None else found.first_order[layer.weight],
                    consumers=None if consumers is None else consumers.of(layer.channels),
                    coupled_norm=_of(norms, layer),
                    refit_error=_of(errors, layer),
                    rectified=layer.rectified,
                ),
            )


def _of(by_channel: Floats | None, layer: Layer) -> Tensor | None:
    """Return what a layer's channels have, (C_out,), NaN where one always stays."""
    return None if by_channel is None else torch.from_numpy(np.append(by_channel, np.nan)[layer.channels])


def _measured(
    model: nn.Module, graph: ChannelGraph, calibration: Calibration | None, needs: frozenset[str], criterion: str
) -> Measured:
    """Measure what is needed on the calibration images, and nothing where nothing is."""
    wanted = needs & (ON_IMAGES | ON_LABELS)
    if calibration is None:
        for field in sorted(wanted):
            raise ConfigError(missing(field, criterion))
        return Measured()
    device = next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))
    batches = batches_of(calibration, device, wanted, criterion)
    if wanted:
        return measure(model, graph, batches, wanted)
    if next(batches, None) is None:
        raise TraceError("calibration holds no batch; it needs at least one batch of images, an (N, C, H, W) tensor.")
    return Measured()


class Scratch:
    """Memory for the weight of one layer at a time: pages that are fresh for every layer take longer than its score."""

    def __init__(self, copies: bool) -> None:
        self.memory = torch.empty(0, dtype=torch.float64)
        self.copies = copies

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy in float64 on the CPU that holds until the next one is made, or itself where that does."""
        if not self.copies and tensor.dtype == torch.float32 and tensor.device.type == "cpu":
            return tensor
        if tensor.numel() > len(self.memory):
            self.memory = torch.empty(tensor.numel(), dtype=torch.float64)
        return self.memory[: tensor.numel()].view(tensor.shape).copy_(tensor)


class _Reader:
    """Reads a network's tensors by name, in float64 on the CPU, as far as they are those of the graph."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.model = model
        self.graph = graph

    def check(self) -> None:
        """Raise a ModelError if the graph was traced from another network."""
        for layer in self.graph.layers:
            self._tensor(layer.weight)

    def read(self, name: str, scratch: Scratch | None = None) -> Tensor:
        """Return a tensor's values: a copy, as a criterion may write into it."""
        tensor = self._tensor(name).detach()
        return tensor.to("cpu", torch.float64, copy=True) if scratch is None else scratch.copy(tensor)

    def norm(self, layer: Layer) -> NormValues | None:
        """Return the values of the BatchNorm after a layer, if it has one."""
        return None if layer.norm is None else self._norm(layer.norm, len(layer.channels))

    def _norm(self, norm: Norm, channels: int) -> NormValues:
        def values(name: str | None) -> Tensor | None:
            return None if name is None else self.read(name)

        gamma, beta = values(norm.weight), values(norm.bias)
        return NormValues(
            gamma=torch.ones(channels, dtype=torch.float64) if gamma is None else gamma,
            beta=torch.zeros(channels, dtype=torch.float64) if beta is None else beta,
            mean=values(norm.mean),
            var=values(norm.var),
            eps=norm.eps,
        )

    def _tensor(self, name: str) -> Tensor:
        tensor, shape = tensor_at(self.model, name), self.graph.tensors[name].shape
        if tensor is None or tuple(tensor.shape) != shape:
            raise ModelError(
                f"the graph was traced from another network: {name} has shape {shape} there and is "
                f"{'missing' if tensor is None else tuple(tensor.shape)} here. Trace this one: "
                "prunus.trace(model, inputs)."
            )
        return tensor
