"""Numbers that the user's code fixes: found by running a smaller network beside the trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from prunus.graph.assemble import Assembly
from prunus.graph.channels import ChannelGraph, Keep, SizeSetting
from prunus.graph.findings import tensors_in
from prunus.graph.fitting import copied, fit, put
from prunus.graph.members import named_tensors
from prunus.graph.places import Place, place_of_call, place_of_error
from prunus.graph.repairs import Repairs
from prunus.graph.running import UNSEEN, DispatchMode, FunctionMode, decomposed, holds_nothing, on_meta, run
from prunus.graph.shapes import result_of
from prunus.graph.spots import axis_ids

if TYPE_CHECKING:
    from prunus.graph.findings import Call
    from prunus.graph.recording import Recording, Runner


@dataclass(frozen=True)
class Attempt:
    """A trace, the graph that it gives, and what is repaired so far: what a smaller network is made by."""

    model: nn.Module
    runner: Runner
    recording: Recording
    assembly: Assembly
    graph: ChannelGraph
    repairs: Repairs


@dataclass(frozen=True)
class Problem:
    """The first step of a smaller network that does not fit: where, and the modules that were running.

    `seed` says which of the smaller networks it was.
    """

    training: bool
    index: int
    place: Place
    modules: tuple[tuple[str, nn.Module], ...]
    error: str
    seed: int = 0

    def comes_before(self, other: Problem) -> bool:
        """Say whether a search for problems meets this one first."""
        return (self.seed, self.training, self.index) < (other.seed, other.training, other.index)


DEALT = 4
"""How many smaller networks have widths that are dealt out, so that any two groups come apart."""

SEEDS = DEALT + 2
"""How many smaller networks are tried; the last ones' widths are drawn, so that sums of widths come apart as well."""


def first_problem(attempt: Attempt) -> Problem | None:
    """Run a smaller network on the meta device; return its first step whose shape is not what the trace says."""
    for seed in range(SEEDS):  # sizes that are equal once by chance are not each time
        problem = _problem(attempt, _fewer(attempt, seed))
        if problem is not None:
            return dataclasses.replace(problem, seed=seed)
    return None


def _problem(attempt: Attempt, keep: Keep) -> Problem | None:
    settings = attempt.repairs.settings(attempt.recording.steps, attempt.assembly)
    is_meta = attempt.runner.is_meta
    small = shrunk(attempt.model, attempt.graph, keep, (*attempt.graph.settings, *settings), is_meta=is_meta)
    for training in (False, True):
        watch = _Watch(attempt, keep, training)
        modules: list[tuple[str, nn.Module]] = []
        watch.modules = modules
        args = attempt.runner.inputs(training, is_meta=is_meta, copies=attempt.runner.copies)
        state = {id(tensor): tensor for tensor in (*small.parameters(), *small.buffers())}
        try:
            run(small, state, args, (FunctionMode(None, is_meta=is_meta), watch), modules, training=training)
        except _Stop:
            pass
        except Exception as error:
            if watch.problem is None:
                watch.note(str(error), place_of_error(error))
        if watch.problem is not None:
            return watch.problem
    return None


def _fewer(attempt: Attempt, seed: int) -> Keep:
    """Drop some bundles of every group, another share of each, so that sizes that were equal come apart."""
    keep = attempt.graph.keep_all()
    layout, prunable = attempt.assembly.traced.layout, attempt.assembly.prunable
    rng = np.random.default_rng(seed)
    for number, group in enumerate(attempt.graph.groups, 1):
        bundles = layout.bundle[prunable[group.channels]]
        known = np.unique(bundles)
        if len(known) > 1:
            least = min(max(2, len(known) // 4), len(known) - 1)
            stay = rng.permutation(known)[: least + _pick(number, len(known) - least, seed, rng)]
            keep[group.channels[~np.isin(bundles, stay)]] = False
    return keep


def _pick(number: int, choices: int, seed: int, rng: np.random.Generator) -> int:
    """Choose one of so many numbers of bundles, or one more than these where there is but one.

    Few choices are dealt out by the number of the group, so that two groups differ for one of the first seeds, and
    neighbours differ the other way for the last that is dealt; of many, and for later seeds, chance does that.
    """
    if choices > 8 or seed >= DEALT:
        return int(rng.integers(max(2, choices)))
    base, digit = max(2, choices), seed % (DEALT - 1)
    dealt = (number % 7 if choices == 1 else number) // int(base**digit) % base
    return dealt if seed == digit else base - 1 - dealt


def shrunk(
    model: nn.Module, graph: ChannelGraph, keep: Keep, settings: Sequence[SizeSetting], *, is_meta: bool = True
) -> nn.Module:
    """Return a copy of a model with only the kept channels' shapes, on the meta device or with values of some."""
    if not is_meta:
        made: dict[int, Any] = {}
        for name, tensor in named_tensors(model):
            labelled = graph.tensors[name]
            mask = torch.from_numpy(labelled.keep_mask(keep)).to(tensor.device).expand(tensor.shape)
            values = tensor.detach()[mask].reshape(labelled.kept_shape(keep))
            made[id(tensor)] = nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values
        return _resized(model, made, keep, settings)
    shapes = {name: labelled.kept_shape(keep) for name, labelled in graph.tensors.items()}
    return shaped(model, shapes, keep, settings)


def shaped(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], keep: Keep, settings: Sequence[SizeSetting]
) -> nn.Module:
    """Return a copy of a model on the meta device whose tensors have these shapes."""
    memo: dict[int, Any] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        if id(tensor) not in memo:
            empty = torch.empty(shapes[name], dtype=tensor.dtype, device="meta")
            memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return _resized(model, memo, keep, settings)


def _resized(model: nn.Module, tensors: Mapping[int, Any], keep: Keep, settings: Sequence[SizeSetting]) -> nn.Module:
    small = copied(model, tensors)
    for setting in settings:
        put(small, setting, keep)
    fit(small)
    return small


class _Stop(Exception):
    """The smaller network is run no further."""


class _Watch(DispatchMode):
    """Compares every step of a smaller network with the trace's."""

    def __init__(self, attempt: Attempt, keep: Keep, training: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.attempt = attempt
        self.keep = keep
        self.training = training
        self.steps = attempt.recording.steps[training]
        self.count = 0
        self.problem: Problem | None = None
        self.modules: list[tuple[str, nn.Module]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = decomposed(self, func, args, kwargs)
        if out is not NotImplemented:
            return out
        kwargs = dict(kwargs or {})
        if holds_nothing(func, args):
            return func(*args, **kwargs)
        try:
            out = None
            if self.attempt.runner.is_meta:
                args, kwargs = on_meta(args, kwargs)
                out = result_of(func, args, kwargs)
            if out is None:
                out = func(*args, **kwargs)
        except Exception as error:
            self.note(str(error))
            raise _Stop from error
        if func in UNSEEN:
            return out
        if self.count < len(self.steps):
            call, _ = self.steps[self.count]
            if not self._fits(call, out):
                self.note(f"{func.overloadpacket} gives {[tuple(t.shape) for t in tensors_in(out)]}")
                raise _Stop
        self.count += 1
        return out

    def note(self, error: str, place: Place | None = None) -> None:
        """Keep where the network stopped to fit."""
        if self.problem is None and self.steps:
            index = min(self.count, len(self.steps) - 1)
            place = place or place_of_call()
            self.problem = Problem(self.training, index, place, tuple(self.modules), error)

    def _fits(self, call: Call, out: Any) -> bool:
        found = tensors_in(out)
        if len(found) != len(call.outputs):
            return False
        for got, was in zip(found, call.outputs, strict=True):
            if got.dim() != was.dim():
                return False
            for axis, (small, size) in enumerate(zip(got.shape, was.shape, strict=True)):
                if small == size == 1 or axis in self.attempt.recording.traced.tape.even(was):
                    continue
                ids = axis_ids(self.attempt.assembly, was, axis)
                if small != (size if ids is None else int(self.keep[ids].sum())):
                    return False
        return True
