"""What a network costs: predicted from its channel graph, or counted on the network itself. Both agree exactly."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from prunus.errors import ModelError
from prunus.graph.channels import ChannelGraph, Ids, Keep, running_axis
from prunus.graph.trace import Inputs, as_arguments

Counts = npt.NDArray[np.int64]
Count = Annotated[int, Field(ge=0, le=2**62)]

METRICS = ("params", "macs", "size_bytes")
"""The fields of a Cost, in the order of `CostTable.costs`."""


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    `params` counts the elements of all parameters; `macs` the multiply-accumulates of convolutions and linear layers
    for one example; `size_bytes` is that of every tensor of the state dict in its own type, and of a file's header if
    one was given.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)  # for costs inside a plan

    params: Count
    macs: Count
    size_bytes: Count


def predict_cost(graph: ChannelGraph, keep: Keep, *, header_bytes: int = 0) -> Cost:
    """Return what the network will cost with only the channels that `keep` keeps; nothing is built.

    Args:
        graph: the channel graph.
        keep: one flag a channel, (channel_count + 1,), as `graph.keep_all()` and `plan.keep_array(graph)` return.
        header_bytes: what a file takes beside its tensors.
    """
    numel = {name: prod(tensor.kept_shape(keep)) for name, tensor in graph.tensors.items()}
    return Cost(
        params=sum(numel[name] for name, tensor in graph.tensors.items() if tensor.is_parameter),
        macs=sum(numel[use.weight] * use.positions for use in graph.contractions),
        size_bytes=header_bytes
        + sum(numel[name] * tensor.dtype.itemsize for name, tensor in graph.tensors.items() if tensor.is_saved),
    )


def count_cost(model: nn.Module, example_inputs: Inputs, *, header_bytes: int = 0) -> Cost:
    """Count what a network costs by running it, in evaluation mode, under PyTorch's own flop counter.

    Args:
        model: any network; its modes, weights and statistics are left as they are.
        example_inputs: what it takes: a tensor (N, C, H, W) on the model's device, or a tuple of arguments.
        header_bytes: what a file takes beside its tensors.

    Raises:
        ModelError: the inputs hold no tensor with a batch axis.
    """
    args = as_arguments(example_inputs)
    tensors = [leaf for leaf in tree_leaves(list(args)) if isinstance(leaf, torch.Tensor)]
    if not tensors or not tensors[0].dim() or not len(tensors[0]):
        raise ModelError("counting MACs needs an input with a batch axis, such as torch.randn(1, 3, 32, 32).")
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    model.eval()
    try:
        with torch.no_grad(), counter:
            model(*args)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // (2 * len(tensors[0])),
        size_bytes=header_bytes + sum(t.numel() * t.element_size() for t in model.state_dict().values()),
    )


class CostTable:
    """The cost of a graph as a function of its widths, compiled so that thousands of candidates are priced at once.

    A *width* is the kept length of one axis; tensors that run along the same channels share it. Each cost is a sum over
    products of widths, `terms`; `prunus.predict_cost` says the same, tensor by tensor.
    """

    def __init__(self, graph: ChannelGraph, *, header_bytes: int = 0) -> None:
        self.header_bytes = header_bytes
        self._numbers: dict[tuple[bytes, int], int] = {}
        rows: list[Counts] = []  # width → how often each channel counts in it; the last entry is what always counts
        divisors: list[int] = []
        terms: dict[tuple[int, ...], Counts] = {}
        positions: dict[str, int] = {}
        for use in graph.contractions:
            positions[use.weight] = positions.get(use.weight, 0) + use.positions
        for name, tensor in graph.tensors.items():
            shape: list[int | None] = list(tensor.shape)
            widths: dict[int, int] = {}
            for field in tensor.fields:
                axis = running_axis(field)
                widths[axis] = self._width(field, field.size // field.shape[axis], rows, divisors, graph.channel_count)
                shape[axis] = None
            numel = prod(length for length in shape if length is not None)
            weights = (tensor.is_parameter, positions.get(name, 0), tensor.is_saved * tensor.dtype.itemsize)
            key = tuple(sorted(widths.values()))
            terms[key] = terms.get(key, np.zeros(3, np.int64)) + numel * np.array(weights, np.int64)
        self.occurrences = np.stack(rows) if rows else np.zeros((0, graph.channel_count + 1), np.int64)
        self._divisors = np.array([*divisors, 1], np.int64)
        longest = max((len(key) for key in terms), default=0)
        one = len(divisors)  # a last width that is always 1 fills up the shorter products
        factors = [[*key, *[one] * (longest - len(key))] for key in terms]
        self._factors = np.array(factors, np.int64).reshape(len(terms), longest)
        self._coefficients = np.array(list(terms.values()), np.int64).reshape(-1, 3)

    def widths(self, keep: Keep) -> Counts:
        """Return the sum behind each width for one choice of channels, (widths,); `costs` takes it."""
        return self.occurrences @ keep.astype(np.int64)

    def costs(self, widths: Counts) -> Counts:
        """Return params, MACs and bytes, (..., 3), for the sums (..., widths)."""
        ones = np.ones((*widths.shape[:-1], 1), np.int64)
        lengths = np.concatenate([widths, ones], axis=-1) // self._divisors
        products: Counts = lengths[..., self._factors].prod(axis=-1)
        costs: Counts = products @ self._coefficients
        costs[..., 2] += self.header_bytes
        return costs

    def _width(self, field: Ids, divisor: int, rows: list[Counts], divisors: list[int], channel_count: int) -> int:
        counts = np.bincount(np.where(field < 0, channel_count, field).ravel(), minlength=channel_count + 1)
        key = (counts.tobytes(), divisor)
        if key not in self._numbers:
            self._numbers[key] = len(rows)
            rows.append(counts.astype(np.int64))
            divisors.append(divisor)
        return self._numbers[key]


def format_count(count: int, *, up: bool = False) -> str:
    """Write a count for people: 12, 61.9 k, 255.3 M, 4.1 G; `up` rounds up, so that the number typed is enough."""
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            return f"{_divided(count * 10, factor, up) / 10:.1f} {unit}"
    return str(count)


def format_bytes(size: int, *, up: bool = False) -> str:
    """Write a size for people, in powers of ten: 640.0 kB, 1.12 MB; `up` rounds up."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB")):
        if size >= factor:
            return f"{_divided(size * 100, factor, up) / 100:.2f} {unit}"
    return f"{_divided(size * 10, 1000, up) / 10:.1f} kB" if size >= 1000 else f"{size} B"


def _divided(numerator: int, denominator: int, up: bool) -> int:
    return -(-numerator // denominator) if up else (2 * numerator + denominator) // (2 * denominator)
