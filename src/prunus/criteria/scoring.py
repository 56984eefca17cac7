"""From a network to one score a coupled channel: read the layers, score them, make layers compare, join members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunus.criteria.registry import AS_STORED, NORMALIZE, REDUCE, Normalize, Reduce, accepted_options, get_criterion
from prunus.criteria.values import Criterion, LayerValues, NormValues
from prunus.errors import ConfigError, ModelError
from prunus.graph.activations import measure_zero_fractions
from prunus.graph.channels import ChannelGraph, Layer, Norm
from prunus.graph.members import named_tensors

Scores = npt.NDArray[np.float64]


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion = "fused_conv_bn",
    *,
    reduce: Reduce | None = None,
    normalize: Normalize | None = None,
    calibration: Tensor | Iterable[Tensor] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Score every prunable channel of a network, higher = keep.

    Args:
        model: the network that `graph` was traced from; it is left as it is.
        graph: its channel graph.
        criterion: a key of CRITERIA, or your own function: LayerValues → (C_out,).
        reduce: how the scores of a coupled channel's members (the layers of a residual sum, a convolution and the
            depthwise one behind it) join: ``"mean"``, ``"max"``, ``"min"``, ``"sum"`` or ``"first"``. By default the
            mean, and for the criterion random the first.
        normalize: what a layer's scores are divided by, so that layers compare: ``"mean"`` or ``"max"`` of the layer,
            or ``"none"``. By default the mean, and for the criterion random none.
        calibration: images to measure activations on, (N, C, H, W) as the model takes them, or an iterable of batches.
        seed: for criteria with an option of that name.
        **options: the criterion's own, such as ``degree="hoyer"``.

    Returns:
        One float64 tensor a group, (group.size,), in the order of `group.channels`.

    Raises:
        ConfigError: an unknown name or option, or a criterion whose result is not one finite number a channel.
        ModelError: the graph was traced from another network.
    """
    name = criterion if isinstance(criterion, str) else ""
    reduce, normalize = reduce or REDUCE.get(name, "mean"), normalize or NORMALIZE.get(name, "mean")
    _check_choice("reduce", reduce, get_args(Reduce))
    _check_choice("normalize", normalize, get_args(Normalize))
    function = get_criterion(criterion, **options)
    if "seed" in (accepted_options(get_criterion(criterion)) or ()):
        function = get_criterion(criterion, **options, seed=seed)
    found = _Members(graph.channel_count, reduce)
    scratch = _Scratch(name not in AS_STORED) if name else None  # a caller's own function may hold on to what it gets
    for layer, values in _read_layers(model, graph, calibration, scratch):
        found.add(layer.channels, _normalized(_checked(function(values), values), normalize))
    scores = found.result()
    for group in graph.groups:
        if np.isnan(scores[group.channels]).any():
            raise ConfigError(
                f"no layer of this graph produces the channels of group {group.name!r}; they have no score."
            )
    return {group.name: torch.from_numpy(scores[group.channels]) for group in graph.groups}


def read_layers(
    model: nn.Module, graph: ChannelGraph, calibration: Tensor | Iterable[Tensor] | None = None
) -> Iterable[tuple[Layer, LayerValues]]:
    """Read the values of every layer that produces prunable channels, in float64 on the CPU.

    Args:
        model: the network that `graph` was traced from.
        graph: its channel graph.
        calibration: images to measure activations on; without them `zero_fraction` is None.

    Raises:
        ModelError: the graph was traced from another network.
    """
    return _read_layers(model, graph, calibration, None)


def _read_layers(
    model: nn.Module, graph: ChannelGraph, calibration: Tensor | Iterable[Tensor] | None, scratch: _Scratch | None
) -> Iterable[tuple[Layer, LayerValues]]:
    tensors = dict(named_tensors(model))
    fractions = None
    if calibration is not None:
        batches = [calibration] if isinstance(calibration, Tensor) else calibration
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        fractions = measure_zero_fractions(model, graph, (batch.to(device) for batch in batches))
        fractions = np.append(fractions, np.nan)  # what id −1 reads
    for layer in graph.layers:
        if (layer.channels >= 0).any():
            measured = None if fractions is None else torch.from_numpy(fractions[layer.channels])
            yield layer, _values(layer, graph, tensors, measured, scratch)


class _Scratch:
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


def _values(
    layer: Layer,
    graph: ChannelGraph,
    tensors: Mapping[str, Tensor],
    measured: Tensor | None,
    scratch: _Scratch | None,
) -> LayerValues:
    weight = _read(layer.weight, graph, tensors, scratch)
    if layer.transposed:
        groups = layer.groups  # (C_in, C_out / groups, …) → (C_out, C_in / groups, …)
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    bias = None if layer.bias is None else _read(layer.bias, graph, tensors)
    norm = None if layer.norm is None else _norm(layer.norm, len(weight), graph, tensors)
    return LayerValues(layer.name, weight, bias, norm, measured)


def _norm(norm: Norm, channels: int, graph: ChannelGraph, tensors: Mapping[str, Tensor]) -> NormValues:
    def values(name: str | None) -> Tensor | None:
        return None if name is None else _read(name, graph, tensors)

    gamma, beta = values(norm.weight), values(norm.bias)
    return NormValues(
        gamma=torch.ones(channels, dtype=torch.float64) if gamma is None else gamma,
        beta=torch.zeros(channels, dtype=torch.float64) if beta is None else beta,
        mean=values(norm.mean),
        var=values(norm.var),
        eps=norm.eps,
    )


def _read(name: str, graph: ChannelGraph, tensors: Mapping[str, Tensor], scratch: _Scratch | None = None) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != graph.tensors[name].shape:
        raise ModelError(
            f"the graph was traced from another network: {name} has shape {graph.tensors[name].shape} there and is "
            f"{'missing' if tensor is None else tuple(tensor.shape)} here. Trace this one: prunus.trace(model, inputs)."
        )
    if scratch is not None:
        return scratch.copy(tensor.detach())
    return tensor.detach().to("cpu", torch.float64, copy=True)  # a criterion may write into it


def _checked(result: object, values: LayerValues) -> Scores:
    """Return a criterion's result as an array, or say what is wrong with it."""
    channels = len(values.weight)
    if not isinstance(result, Tensor) or tuple(result.shape) != (channels,):
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise ConfigError(
            f"the criterion returned {got} for layer {values.name!r}; it should return one number a filter, a tensor "
            f"of shape ({channels},)."
        )
    scores: Scores = result.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(scores).all():
        raise ConfigError(
            f"the criterion's scores for layer {values.name!r} are not all finite; are its weights and statistics?"
        )
    return scores


def _normalized(scores: Scores, normalize: Normalize) -> Scores:
    if normalize == "none":
        return scores
    unit = float(scores.mean() if normalize == "mean" else scores.max())
    return scores / unit if unit > 0 else scores  # a layer of zeros stays one


class _Members:
    """Joins the scores of each coupled channel's members, layer by layer."""

    def __init__(self, channel_count: int, reduce: Reduce) -> None:
        self.reduce = reduce
        self.count = np.zeros(channel_count)
        self.total = np.full(channel_count, {"max": -np.inf, "min": np.inf}.get(reduce, 0.0))

    def add(self, channels: npt.NDArray[np.int64], scores: Scores) -> None:
        ids, values = channels[channels >= 0], scores[channels >= 0]
        if self.reduce == "first":
            new = self.count[ids] == 0
            ids, values = ids[new], values[new]
        ufunc = {"max": np.maximum, "min": np.minimum}.get(self.reduce, np.add)
        ufunc.at(self.total, ids, values)
        np.add.at(self.count, ids, 1)

    def result(self) -> Scores:
        """Return one score a channel; NaN where it has no member."""
        joined = self.total / self.count.clip(1) if self.reduce in ("mean", "first") else self.total
        return np.where(self.count > 0, joined, np.nan)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{what} is {value!r}; it is one of {', '.join(choices)}.")
