"""What a network costs: predicted from its channel graph, or counted on the network itself. Both agree exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
from prunus.graph.channels import ChannelGraph, Ids, Keep, LabelledTensor, LayerTime, running_axis
from prunus.graph.trace import Inputs, as_arguments

Counts = npt.NDArray[np.int64]
Count = Annotated[int, Field(ge=0, le=2**62)]

METRICS = ("params", "macs", "size_bytes", "latency_ps")
"""The fields of a Cost, in the order of `CostTable.costs`."""


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    `params` counts the elements of all parameters; `macs` the multiply-accumulates of convolutions and linear layers
    for one example; `size_bytes` is that of every tensor of the state dict in its own type, and of a file's header if
    one was given; `latency_ps` the picoseconds that one example takes, 0 where the graph has no times
    (`ChannelGraph.with_times`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)  # for costs inside a plan

    params: Count
    macs: Count
    size_bytes: Count
    latency_ps: Count = 0


def predict_cost(graph: ChannelGraph, keep: Keep, *, header_bytes: int = 0) -> Cost:
    """Return what the network will cost with only the channels that `keep` keeps; nothing is built.

    Args:
        graph: the channel graph.
        keep: one flag a channel, (channel_count + 1,), as `graph.keep_all()` and `plan.keep_array(graph)` return.
        header_bytes: what a file takes beside its tensors.
    """
    numel = _numels(graph, keep)
    return Cost(
        params=sum(numel[name] for name, tensor in graph.tensors.items() if tensor.is_parameter),
        macs=sum(numel[use.weight] * use.positions for use in graph.contractions),
        size_bytes=header_bytes
        + sum(numel[name] * tensor.dtype.itemsize for name, tensor in graph.tensors.items() if tensor.is_saved),
        latency_ps=sum(time.of(*(*graph.tensors[name].kept_shape(keep), 1)[:2]) for name, time in graph.times.items()),
    )


def _numels(graph: ChannelGraph, keep: Keep) -> dict[str, int]:
    """Return how many elements of each tensor stay, as its `kept_shape` says, for all tensors at once."""
    if keep.all():
        return {name: prod(tensor.shape) for name, tensor in graph.tensors.items()}
    fields = {name: _varying(tensor) for name, tensor in graph.tensors.items()}
    flat = [np.zeros(0, np.int64), *(field.ravel() for own in fields.values() for field in own)]
    sums = np.append(0, np.cumsum(keep[np.concatenate(flat)]))
    kept = iter(np.diff(sums[np.cumsum([len(ids) for ids in flat])]).tolist())
    numel = {}
    for name, tensor in graph.tensors.items():
        shape, seen = list(tensor.shape), set()
        for field in fields[name]:
            axis = running_axis(field)
            shape[axis] = next(kept) // (field.size // field.shape[axis])
            seen.add(axis)
        # An element whose axis runs along two kinds of channels stays if both do, which two counts do not say.
        numel[name] = prod(shape if len(seen) == len(fields[name]) else tensor.kept_shape(keep))
    return numel


def _varying(tensor: LabelledTensor) -> list[Ids]:
    """Return the fields with more than one channel: a width of one always stays whole."""
    return [field for field in tensor.fields if field.size > 1]


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
    """The cost of a graph as a function of its widths, so that thousands of candidates are priced quickly.

    A *width* is a sum over kept channels; tensors that run along the same channels share it. Channels that run through
    every width equally often form a *class*. A *length*, that of a tensor's axis, is a width over a divisor, or a
    product of widths where the axis runs along every pair of two kinds of channels. Each cost is a sum over products of
    lengths, the *terms*; `prunus.predict_cost` says the same, tensor by tensor. Memory grows with the fields' sizes.

    `classes` is the class of each channel, and last that of what is always kept, (channel_count + 1,).
    """

    def __init__(self, graph: ChannelGraph, *, header_bytes: int = 0) -> None:
        self.header_bytes = header_bytes
        found = _Widths(graph.channel_count)
        terms: dict[tuple[int, ...], Counts] = {}
        positions: Counter[str] = Counter()
        for use in graph.contractions:
            positions[use.weight] += use.positions
        for name, tensor in graph.tensors.items():
            running: dict[int, list[Ids]] = {}
            for field in _varying(tensor):
                running.setdefault(running_axis(field), []).append(field)
            key = tuple(sorted(found.length(fields, axis) for axis, fields in running.items()))
            numel = prod(length for axis, length in enumerate(tensor.shape) if axis not in running)
            weights = (tensor.is_parameter, positions[name], tensor.is_saved * tensor.dtype.itemsize)
            terms[key] = terms.get(key, np.zeros(4, np.int64)) + numel * np.array((*weights, 0), np.int64)
            if time := graph.times.get(name):
                lengths = {axis: found.length(fields, axis) for axis, fields in running.items()}
                for own, picoseconds in _timed(time, (*tensor.shape, 1)[:2], lengths).items():
                    terms[own] = terms.get(own, np.zeros(4, np.int64)) + np.array((0, 0, 0, picoseconds), np.int64)
        self.classes, self._occurrences = found.classes()
        self._coefficients = np.array(list(terms.values()), np.int64).reshape(-1, 4)
        lists = [widths for widths, _ in found.lengths]
        # A last width and a last length that are always 1 fill up the shorter products.
        self._pairs = _filled([*lists, ()], self._occurrences.rows)
        self._divisors = np.array([*(divisor for _, divisor in found.lengths), 1], np.int64)
        self._factors = _filled(list(terms), len(found.lengths))
        self._widths_of = self._occurrences.transposed()
        self._lengths_of = _Sparse.of_lists(lists, self._occurrences.rows).transposed()
        self._terms_of = _Sparse.of_lists(list(terms), len(found.lengths)).transposed()

    def counts(self, channels: Ids | Keep) -> Counts:
        """Return how many channels of each class there are among some, given by number or by flags, (classes,)."""
        return np.bincount(self.classes[channels], minlength=self._occurrences.columns)

    def widths_of(self, counts: Counts) -> Counts:
        """Return the sum behind each width where so many channels of each class stay, (classes,) → (widths,)."""
        return self._occurrences.times(counts)

    def widths(self, keep: Keep) -> Counts:
        """Return the sum behind each width for one choice of channels, (widths,); `costs` takes it."""
        return self.widths_of(self.counts(keep))

    def costs(self, widths: Counts) -> Counts:
        """Return params, MACs, bytes and picoseconds, (..., 4), for the sums (..., widths)."""
        ones = np.ones((*widths.shape[:-1], 1), np.int64)
        lengths = np.concatenate([widths, ones], axis=-1)[..., self._pairs].prod(axis=-1) // self._divisors
        costs: Counts = lengths[..., self._factors].prod(axis=-1) @ self._coefficients
        costs[..., 2] += self.header_bytes
        return costs


class GrowingCost:
    """The costs of one choice of channels that grows: only what an addition changes is counted anew."""

    def __init__(self, table: CostTable, counts: Counts) -> None:
        self.table = table
        widths = table.widths_of(counts)
        self.costs = table.costs(widths)
        self._widths = np.append(widths, 1)
        self._lengths = self._widths[table._pairs].prod(axis=1) // table._divisors

    def grow(self, channels: Ids, limits: Counts) -> bool:
        """Add some channels, unless a cost would be above its limit, (4,); say whether it was done."""
        table = self.table
        classes, counts = np.unique(table.classes[channels], return_counts=True)
        place, widths, occurrences = table._widths_of.entries(classes)
        lengths = np.unique(table._lengths_of.entries(widths)[1])
        terms = np.unique(table._terms_of.entries(lengths)[1])
        before, old = self._products(terms), self._lengths[lengths]
        np.add.at(self._widths, widths, occurrences * counts[place])
        self._lengths[lengths] = self._widths[table._pairs[lengths]].prod(axis=1) // table._divisors[lengths]
        costs = self.costs + (self._products(terms) - before) @ table._coefficients[terms]
        fits = bool((costs <= limits).all())
        if fits:
            self.costs = costs
        else:
            np.subtract.at(self._widths, widths, occurrences * counts[place])
            self._lengths[lengths] = old
        return fits

    def _products(self, terms: Ids) -> Counts:
        products: Counts = self._lengths[self.table._factors[terms]].prod(axis=1)
        return products


def _timed(time: LayerTime, shape: Sequence[int], lengths: Mapping[int, int]) -> dict[tuple[int, ...], int]:
    """Return the time as coefficients of products of lengths; an axis without a length that varies has its own."""
    parts = {(): time.constant, (0,): time.per_row, (1,): time.per_column, (0, 1): time.per_pair}
    terms: dict[tuple[int, ...], int] = {}
    for axes, picoseconds in parts.items():
        key = tuple(sorted(lengths[axis] for axis in axes if axis in lengths))
        fixed = prod(shape[axis] for axis in axes if axis not in lengths)
        terms[key] = terms.get(key, 0) + picoseconds * fixed
    return terms


class _Sparse:
    """A matrix of counts, most of them zero: the entries of each row lie together."""

    def __init__(self, row: Ids, column: Ids, count: Counts, shape: tuple[int, int]) -> None:
        order = np.argsort(row, kind="stable")
        self.rows, self.columns = shape
        self._row, self._column, self._count = row[order], column[order], count[order]
        self._starts = np.searchsorted(self._row, np.arange(self.rows + 1))

    @classmethod
    def of_lists(cls, lists: Sequence[Collection[int]], columns: int) -> _Sparse:
        """Build the matrix with a 1 in each row's listed columns."""
        row = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists])
        column = np.array([entry for entries in lists for entry in entries], np.int64)
        return cls(row, column, np.ones(len(column), np.int64), (len(lists), columns))

    def transposed(self) -> _Sparse:
        return _Sparse(self._column, self._row, self._count, (self.columns, self.rows))

    def times(self, vector: Counts) -> Counts:
        """Return the product with a vector, (columns,) → (rows,)."""
        sums = np.append(0, np.cumsum(self._count * vector[self._column]))
        product: Counts = np.diff(sums[self._starts])
        return product

    def entries(self, rows: Ids) -> tuple[Ids, Ids, Counts]:
        """Return the entries of some rows: the place in `rows`, the column and the count of each."""
        starts, lengths = self._starts[rows], self._starts[rows + 1] - self._starts[rows]
        place = np.repeat(np.arange(len(rows)), lengths)
        entry = np.arange(len(place)) + (starts - np.cumsum(lengths) + lengths)[place]
        return place, self._column[entry], self._count[entry]


class _Widths:
    """Collects the widths and lengths of a graph, each once."""

    def __init__(self, channel_count: int) -> None:
        self.channel_count = channel_count
        self.lengths: dict[tuple[tuple[int, ...], int], int] = {}
        self._by_field: dict[bytes, int] = {}
        self._widths: dict[bytes, tuple[Ids, Counts]] = {}  # channels, −1 as the last one, and how often each counts
        self._numbers: dict[bytes, int] = {}

    def length(self, fields: Sequence[Ids], axis: int) -> int:
        """Return the number of the length of an axis that these fields run along."""
        different = {(field.shape, field.tobytes()): field for field in fields}.values()
        widths = tuple(sorted(self._width(field) for field in different))
        divisor = prod(field.size for field in different) // max(field.shape[axis] for field in different)
        return self.lengths.setdefault((widths, divisor), len(self.lengths))

    def _width(self, field: Ids) -> int:
        raw = field.tobytes()
        if raw not in self._by_field:
            ids, counts = np.unique(np.where(field < 0, self.channel_count, field), return_counts=True)
            key = ids.tobytes() + counts.tobytes()
            self._widths.setdefault(key, (ids, counts))
            self._by_field[raw] = self._numbers.setdefault(key, len(self._numbers))
        return self._by_field[raw]

    def classes(self) -> tuple[Ids, _Sparse]:
        """Return the class of each channel, and how often a channel of each class runs through each width."""
        factors = np.random.default_rng(0).integers(2**64, size=len(self._widths), dtype=np.uint64)
        signatures = np.zeros(self.channel_count + 1, np.uint64)  # equal for channels that occur equally often
        for factor, (ids, counts) in zip(factors, self._widths.values(), strict=True):
            signatures[ids] += factor * counts.astype(np.uint64)
        _, first, inverse = np.unique(signatures[:-1], return_index=True, return_inverse=True)
        classes, members = np.append(inverse, len(first)), np.append(first, self.channel_count)
        ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in self._widths.values())])
        counts = np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in self._widths.values())])
        row = np.repeat(np.arange(len(self._widths)), [len(ids) for ids, _ in self._widths.values()])
        one = members[classes[ids]] == ids  # each class is counted through its first channel
        return classes, _Sparse(row[one], classes[ids[one]], counts[one], (len(self._widths), len(members)))


def _filled(lists: Sequence[Sequence[int]], filler: int) -> Ids:
    """Return lists of numbers as the rows of one array, the shorter ones filled up."""
    longest = max((len(entries) for entries in lists), default=0)
    rows = [[*entries, *[filler] * (longest - len(entries))] for entries in lists]
    return np.array(rows, np.int64).reshape(len(lists), longest)


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


def format_latency(picoseconds: int, *, up: bool = False) -> str:
    """Write a time for people: 812 ns, 61.9 µs, 2.31 ms; `up` rounds up."""
    for factor, unit in ((10**12, "s"), (10**9, "ms"), (10**6, "µs")):
        if picoseconds >= factor:
            return f"{_divided(picoseconds * 100, factor, up) / 100:.2f} {unit}"
    return f"{_divided(picoseconds, 10**3, up)} ns"


def _divided(numerator: int, denominator: int, up: bool) -> int:
    return -(-numerator // denominator) if up else (2 * numerator + denominator) // (2 * denominator)
