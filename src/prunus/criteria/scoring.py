"""From a network to one score a coupled channel: read the layers, score them, make layers compare, join members."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunus.budget import Budget
from prunus.cost import predict_cost
from prunus.criteria.calibration import Calibration
from prunus.criteria.coupled import saved_bytes, saved_macs, saved_params, saved_time
from prunus.criteria.normalising import Scores, normalized
from prunus.criteria.reading import Scratch, layers_of
from prunus.criteria.registry import (
    AS_STORED,
    REDUCE,
    Normalize,
    Reduce,
    accepted_options,
    check_fields,
    get_criterion,
    needed,
    normalization,
)
from prunus.criteria.values import Criterion, LayerValues
from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph

_SAVED = {"macs": saved_macs, "params": saved_params, "size_bytes": saved_bytes, "latency_ps": saved_time}


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion = "delivered_energy",
    *,
    reduce: Reduce | None = None,
    normalize: Normalize | None = None,
    budget: Budget | None = None,
    calibration: Calibration | None = None,
    needs: Collection[str] | None = None,
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
        normalize: how a layer's scores are made to compare with another's. They are divided by the layer's ``"mean"``
            or ``"max"``; or by the number of weights and biases that each of its filters has (``"size"``); or by what
            removing the coupled channel alone saves, everywhere, of what `budget` limits (``"cost"``), or of the time,
            where the graph has times (``"latency"``); or the layer's mean is taken away and the rest divided by its
            standard deviation (``"gaussian"``); or they stay as they are (``"none"``).
            By default the mean, none for the criteria random, taylor and
            delivered_energy, and the cost for refit_error.
        budget: what the scores are for. Costs are those that it limits most tightly: MACs, parameters, bytes of a file,
            or time; MACs where there is no budget, or one of channels alone.
        calibration: what to measure on, for the criteria that look at more than weights: images, (N, C, H, W) as the
            model takes them, or an iterable of batches; for taylor, an iterable of (images, labels) pairs, labels as
            cross-entropy takes them. Only what the criterion needs is measured; the model runs in evaluation mode.
        needs: for a function of your own, the optional fields of LayerValues that it looks at, such as
            ``("feature_rank",)``. By default `zero_fraction`, if there is calibration.
        seed: for criteria with an option of that name.
        **options: the criterion's own, such as ``degree="hoyer"``.

    Returns:
        One float64 tensor a group, (group.size,), in the order of `group.channels`; zeros for one that is dropped.

    Raises:
        ConfigError: an unknown name or option; a criterion whose result is not one finite number a channel; or one that
            needs images, or labels, which are not there.
        ModelError: the graph was traced from another network.
    """
    normalize = normalization(criterion, normalize)
    return score_each(
        model,
        graph,
        criterion,
        (normalize,),
        reduce=reduce,
        budget=budget,
        calibration=calibration,
        needs=needs,
        seed=seed,
        **options,
    )[normalize]


def score_each(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion,
    normalizations: Collection[Normalize],
    *,
    reduce: Reduce | None = None,
    budget: Budget | None = None,
    calibration: Calibration | None = None,
    needs: Collection[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[Normalize, dict[str, Tensor]]:
    """Score every prunable channel once, and return what each of several normalisations makes of it.

    What a criterion measures takes long, and dividing it takes no time. All else is as `score` has it.
    """
    name = criterion if isinstance(criterion, str) else ""
    reduce = reduce or REDUCE.get(name, "mean")
    _check_choice("reduce", reduce, get_args(Reduce))
    for normalize in normalizations:
        _check_choice("normalize", normalize, get_args(Normalize))
    function = get_criterion(criterion, **options)
    if "seed" in (accepted_options(get_criterion(criterion)) or ()):
        function = get_criterion(criterion, **options, seed=seed)
    scratch = Scratch(name not in AS_STORED) if name else None  # a caller's own function may hold on to what it gets
    fields = needed(criterion, options, calibration is not None)
    if needs is not None:
        fields |= check_fields(needs)
    elif not name and not fields and calibration is not None:
        fields |= {"zero_fraction"}
    called = name or getattr(criterion, "__name__", "the criterion")
    found = {normalize: _Members(graph.channel_count, reduce) for normalize in normalizations}
    savings = {normalize: _savings(graph, normalize, budget) for normalize in normalizations}
    for layer, values in layers_of(model, graph, calibration, fields, called, scratch):
        raw = _checked(function(values), values)
        for normalize, members in found.items():
            saving = savings[normalize]
            saved = None if saving is None else saving[layer.channels]
            members.add(layer.channels, normalized(raw, normalize, values, saved))
    return {normalize: _by_group(members.result(), graph) for normalize, members in found.items()}


def _by_group(scores: Scores, graph: ChannelGraph) -> dict[str, Tensor]:
    """Return the scores of each group's channels, zeros for one that is dropped; ConfigError where one has none."""
    for group in graph.groups:
        if group.dropped:  # it has no layers that could be scored
            scores[group.channels] = 0.0
        if np.isnan(scores[group.channels]).any():
            raise ConfigError(
                f"no layer of this graph produces the channels of group {group.name!r}; they have no score."
            )
    return {group.name: torch.from_numpy(scores[group.channels]) for group in graph.groups}


def _savings(graph: ChannelGraph, normalize: Normalize, budget: Budget | None) -> Scores | None:
    """Return what each channel's removal saves, and 0 for what is always kept, where scores are divided by it."""
    if normalize not in ("cost", "latency"):
        return None
    limited = "latency_ps" if normalize == "latency" else _tightest(graph, budget)
    if limited == "latency_ps" and not graph.times:
        raise ConfigError(
            "normalize is 'latency', and what the layers take is not known: measure it first, "
            "graph = graph.with_times(prunus.measure_times(model, graph, example_inputs).times)."
        )
    return np.append(_SAVED[limited](graph), 0)


def _tightest(graph: ChannelGraph, budget: Budget | None) -> str:
    """Return the cost of which a budget leaves the smallest share; MACs where none is known that it limits."""
    dense = predict_cost(graph, graph.keep_all())
    limits = {} if budget is None else budget.limits(dense)
    if not graph.times:
        limits.pop("latency_ps", None)  # `allocate` says what is missing
    return min(limits, key=lambda name: limits[name] / max(getattr(dense, name), 1), default="macs")


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
        if (np.diff(ids) > 0).all():  # each once
            self.total[ids] = ufunc(self.total[ids], values)
            self.count[ids] += 1
        else:
            ufunc.at(self.total, ids, values)
            np.add.at(self.count, ids, 1)

    def result(self) -> Scores:
        """Return one score a channel; NaN where it has no member."""
        joined = self.total / self.count.clip(1) if self.reduce in ("mean", "first") else self.total
        return np.where(self.count > 0, joined, np.nan)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{what} is {value!r}; it is one of {', '.join(choices)}.")
