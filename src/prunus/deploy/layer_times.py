"""How long the layers of a network take in a runtime, at any widths: measured on this processor, then fitted.

First every kind of layer is exported and timed by itself at several widths, and a form that never falls with more
channels is fitted to each table. Then a few networks of random widths are exported and timed as a whole, and what
layers take inside a network, beside what they take alone, is fitted to these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.budget import Budget
from prunus.deploy.benchmarking import time_in_turns
from prunus.deploy.exporting import export
from prunus.deploy.file_info import FileInfo
from prunus.deploy.formats import FORMATS, WRITTEN, find_format, open_exported
from prunus.deploy.formats.onnx import encode_layer, open_bytes
from prunus.deploy.latency import processor_name
from prunus.deploy.layer_shapes import Kind, LayerShape, LayerUse, layer_uses
from prunus.deploy.runner import Runner
from prunus.errors import BudgetError, ConfigError, FileFormatError, ModelError
from prunus.files import atomic_write_json, read_json
from prunus.graph.channels import ChannelGraph, LayerTime
from prunus.graph.trace import Inputs, as_arguments
from prunus.surgery import remove

RUNTIMES = tuple(FORMATS[name].runtime for name in WRITTEN)
"""Runtimes that a latency can be measured in, as `--runtime` calls them."""

_SHARES = ((1.0, 1.0), (1.0, 0.25), (0.25, 1.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75))  # of inputs and outputs
_NETWORKS = 6
_ALONE = 0.5  # how much a scale of 1, "in a network as alone", counts beside a network that was measured
_QUICK = 10  # percentile of the calls: what comes between only makes a call slower
_FORMAT = 1  # of a cached table
_MULTIPLES = (1, 2, 4, 8, 16)
_ROUNDING = 0.01
_KINDS: tuple[Kind, ...] = ("convolution", "pointwise", "depthwise", "linear")

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]  # measured so far, of


@dataclass(frozen=True)
class MeasuredTimes:
    """What the layers of a network take for one example, and how well that is known.

    Attributes:
        times: by weight, for `ChannelGraph.with_times`.
        table_error: mean relative error of the fitted tables on the layers that were measured alone.
        network_error: mean relative error on whole networks, each predicted from the others.
        multiple: widths that are multiples of this many channels cost about what the ones below cost.
        runtime: name and version.
        processor: where it was measured.
        threads: CPU threads within an operator.
    """

    times: dict[str, LayerTime]
    table_error: float
    network_error: float
    multiple: int
    runtime: str
    processor: str
    threads: int


def measure_times(
    model: nn.Module,
    graph: ChannelGraph,
    example_inputs: Inputs,
    *,
    runtime: str = "ort",
    threads: int = 1,
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Progress = lambda done, of: None,
) -> MeasuredTimes:
    """Measure what the network's layers take at any widths, for one image in a runtime on this processor.

    Args:
        model: the network that `graph` was traced from, on the CPU; it is left as it is.
        graph: its channel graph.
        example_inputs: what it takes: one tensor (N, C, H, W).
        runtime: one of `RUNTIMES`.
        threads: CPU threads within an operator.
        seed: decides the widths of the networks that are measured.
        cache_dir: where tables are kept; None measures anew. One of another processor, version or network is not used.
        progress: told how much is measured.

    Raises:
        ConfigError: there is no such runtime, or it is not installed.
        ModelError: the network takes more than a tensor, cannot be exported, or has no layer that can be timed.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"--runtime {runtime}: latency can be measured in {', '.join(RUNTIMES)}.")
    example, *more = as_arguments(example_inputs)
    if more or not isinstance(example, Tensor):
        raise ModelError(
            "latency is measured for networks that take one tensor; wrap the network in a module that does."
        )
    uses = layer_uses(model, example[:1])
    if not uses:
        raise ModelError("the network has no convolution or linear layer that could be timed.")
    clock = Clock(runtime, threads)
    mark = _fingerprint(clock, uses, tuple(example.shape[1:]), seed)
    file = None if cache_dir is None else cache_dir / f"times-{mark[:40]}.json"
    if file is not None and (known := _read(file)):
        return known
    shapes = list(dict.fromkeys(use.shape for use in uses))
    total = len(shapes) * len(_SHARES) + _NETWORKS
    tables, errors = {}, []
    for number, shape in enumerate(shapes):
        of_shape = [use for use in uses if use.shape == shape]
        widest = max(use.inputs for use in of_shape), max(use.outputs for use in of_shape)
        tables[shape], error = _table(clock, shape, widest)
        errors.append(error)
        progress((number + 1) * len(_SHARES), total)
    networks, runners = _networks(model, graph, seed), []
    for number, network in enumerate(networks):
        runners.append(clock.open(network, tuple(example.shape[1:])))
        progress(len(shapes) * len(_SHARES) + number + 1, total)
    measured = clock.seconds(runners)
    features = np.array([_features(uses, tables, network) for network in networks])
    found = MeasuredTimes(
        times=_times(uses, tables, _fitted(features, measured)),
        table_error=float(np.mean(errors)),
        network_error=_left_out(features, measured),
        multiple=liked_multiple(clock, uses),
        runtime=clock.version,
        processor=processor_name(),
        threads=threads,
    )
    if file is not None:
        atomic_write_json(file, encode_times(found))
    return found


class Clock:
    """Times layers and networks in one runtime, through the same export that users get."""

    def __init__(self, runtime: str, threads: int) -> None:
        self._format = find_format(next(name for name in WRITTEN if FORMATS[name].runtime == runtime))
        self.threads = threads
        self.version = ""
        # What a call costs that does nothing.
        self._idle = 0.0
        self._idle = self.layer(nn.Conv2d(1, 1, 1), (1, 1, 1))

    def layer(self, layer: nn.Conv2d | nn.Linear, input_shape: tuple[int, ...]) -> float:
        """Return the seconds that a layer takes alone, with a rectifier fused; those of an empty call are left out."""
        if self._format.name == "onnx":
            info = FileInfo(format="onnx", input_shape=input_shape)
            runner = open_bytes(encode_layer(layer, info), Path("layer.onnx"), self.threads)
            self.version = runner.runtime
        else:
            runner = self.open(nn.Sequential(layer, nn.ReLU()), input_shape)
        return max(1e-8, float(self.seconds([runner], runs=30)[0]) - self._idle)

    def open(self, network: nn.Module, input_shape: tuple[int, ...]) -> Runner:
        """Export a network and open the file, as users do."""
        with tempfile.TemporaryDirectory(prefix="prunus-") as folder:
            (file,) = export(network, folder, (self._format.name,), input_shape=input_shape)
            runner = open_exported(file.files[0], self.threads)
        self.version = runner.runtime
        return runner

    def seconds(self, runners: Sequence[Runner], runs: int = 60, percentile: float = _QUICK) -> Floats:
        """Return what one call of each takes, called in turns: a percentile of the calls."""
        times = time_in_turns({str(number): runner for number, runner in enumerate(runners)}, 1, runs, 5)
        return np.array([float(np.percentile(taken, percentile)) / 1e3 for taken in times.values()])


def _table(clock: Clock, shape: LayerShape, widest: tuple[int, int]) -> tuple[Floats, float]:
    """Time a layer at several widths; return (constant, per output, per input, per pair) in seconds, and the error."""
    widths: dict[tuple[int, int], None] = {}
    for inputs, outputs in _SHARES:
        pair = max(1, round(inputs * widest[0])), max(1, round(outputs * widest[1]))
        widths[(pair[1], pair[1]) if shape.kind == "depthwise" else pair] = None
    seconds = np.array([clock.layer(shape.build(*pair), shape.input_shape(pair[0])) for pair in widths])
    rows = np.array([_form(shape.kind, *pair) for pair in widths])
    fitted, _ = nnls(rows / seconds[:, None], np.ones(len(rows)))
    return fitted, float(np.mean(np.abs(rows @ fitted / seconds - 1)))


def _form(kind: Kind, inputs: int, outputs: int) -> Floats:
    """Return what the coefficients of a table are multiplied with; a depthwise layer has one width."""
    if kind == "depthwise":
        return np.array([1.0, outputs, 0.0, 0.0])
    return np.array([1.0, outputs, inputs, inputs * outputs])


def liked_multiple(clock: Clock, uses: Sequence[LayerUse]) -> int:
    """Find the largest multiple that widths can be rounded up to at a cost of at most 1 %, of `_MULTIPLES`.

    Runtimes work on blocks of channels, so that a last block which is not full takes as long as a full one. Measured on
    the layer with the most MACs, at the widths of one largest block.
    """
    use = max(uses, key=lambda use: use.inputs * use.outputs * use.shape.positions * math.prod(use.shape.kernel))
    first = max(1, min(use.inputs, use.outputs) // 2)
    widths = range(first, first + 2 * _MULTIPLES[-1])
    seconds = {n: clock.layer(use.shape.build(n, n), use.shape.input_shape(n)) for n in widths}

    def cost(multiple: int) -> float:
        rounded = [(n, -(-n // multiple) * multiple) for n in widths]
        return float(np.mean([seconds[up] / seconds[n] for n, up in rounded if up in seconds]))

    return max(multiple for multiple in _MULTIPLES if multiple == 1 or cost(multiple) <= 1 + _ROUNDING)


def _networks(model: nn.Module, graph: ChannelGraph, seed: int) -> list[nn.Module]:
    """Make the network itself, and ones of random widths within smaller and smaller shares of its MACs."""
    random = np.random.default_rng(seed)
    zeros = {group.name: torch.zeros(group.size) for group in graph.groups}
    made = [model]
    for share in np.linspace(0.85, 0.15, _NETWORKS - 1):
        widths = {group.name: float(random.uniform(0.3, 1.0) * group.size) for group in graph.groups}
        with contextlib.suppress(BudgetError):  # where little can go
            plan = allocate(graph, zeros, Budget(macs=float(share)), widths=widths, min_channels=1)
            made.append(remove(model, graph, plan))
    return made


def _features(uses: Sequence[LayerUse], tables: Mapping[LayerShape, Floats], network: nn.Module) -> Floats:
    """Return what a network's time is made of: what its layers take alone, by kind; its layers' outputs; and 1."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = np.zeros(len(_KINDS) + 2)
    found[-1] = 1.0
    for use in uses:
        outputs, inputs = shapes[use.weight][:2]
        found[_KINDS.index(use.shape.kind)] += _form(use.shape.kind, inputs, outputs) @ tables[use.shape]
        found[-2] += outputs * use.shape.positions
    return found


def _fitted(features: Floats, seconds: Floats) -> Floats:
    """Fit how much each part counts, none of them less than nothing; without contrary evidence layers count once."""
    scale = features.max(axis=0)
    scale[scale == 0] = 1.0
    rows = [features / seconds[:, None], _ALONE * np.eye(len(_KINDS), features.shape[1])]
    wanted = np.concatenate([np.ones(len(seconds)), np.full(len(_KINDS), _ALONE)])
    fitted, _ = nnls(np.concatenate(rows) / scale, wanted)
    return np.asarray(fitted / scale)


def _left_out(features: Floats, seconds: Floats) -> float:
    """Return the mean relative error of every network's time, predicted by what is fitted to the others."""
    errors = []
    for number in range(len(seconds)):
        others = np.arange(len(seconds)) != number
        if others.any():
            predicted = features[number] @ _fitted(features[others], seconds[others])
            errors.append(abs(predicted / seconds[number] - 1))
    return float(np.mean(errors)) if errors else 0.0


def _times(uses: Sequence[LayerUse], tables: Mapping[LayerShape, Floats], fitted: Floats) -> dict[str, LayerTime]:
    """Return the times of all weights in picoseconds; what no layer takes is added to the first one's."""
    sums: dict[str, Floats] = {}
    for use in uses:
        own = fitted[_KINDS.index(use.shape.kind)] * tables[use.shape]
        own[1] += fitted[-2] * use.shape.positions
        sums[use.weight] = sums.get(use.weight, np.zeros(4)) + own
    first = next(iter(sums))
    sums[first][0] += fitted[-1]
    return {weight: LayerTime(*(round(1e12 * float(part)) for part in parts)) for weight, parts in sums.items()}


def _fingerprint(clock: Clock, uses: Sequence[LayerUse], input_shape: tuple[int, ...], seed: int) -> str:
    """Name everything that a measurement depends on."""
    used = [dataclasses.astuple(use) for use in uses]
    what = [_FORMAT, clock.version, clock.threads, processor_name(), used, input_shape, seed, torch.__version__]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def encode_times(found: MeasuredTimes) -> dict[str, Any]:
    """Write measured times as plain data, which `decode_times` reads."""
    times = {weight: dataclasses.astuple(time) for weight, time in found.times.items()}
    return {**dataclasses.asdict(found), "times": times}


def decode_times(data: object) -> MeasuredTimes:
    """Read what `encode_times` wrote; ValueError or TypeError where it is something else."""
    if not isinstance(data, dict) or set(data) != {field.name for field in dataclasses.fields(MeasuredTimes)}:
        raise ValueError("no table of times")
    return MeasuredTimes(
        times={str(weight): LayerTime(*map(_whole, parts)) for weight, parts in data["times"].items()},
        table_error=float(data["table_error"]),
        network_error=float(data["network_error"]),
        multiple=_whole(data["multiple"]),
        runtime=str(data["runtime"]),
        processor=str(data["processor"]),
        threads=_whole(data["threads"]),
    )


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**15:
        raise ValueError(f"{value!r:.40} is no time")
    return value


def _read(file: Path) -> MeasuredTimes | None:
    """Read a cached table; one that is damaged is measured again."""
    if not file.exists():
        return None
    try:
        return decode_times(read_json(file, "table of layer times"))
    except (FileFormatError, ValueError, TypeError, AttributeError):
        return None
