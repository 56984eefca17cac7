"""Numbers that the user's code fixes: found by running a smaller network, repaired where a module stores them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.graph.assemble import Assembly
from prunus.graph.channels import ChannelGraph, Ids, Keep, SizeSetting
from prunus.graph.findings import tensors_in
from prunus.graph.fitting import copied, fit, put
from prunus.graph.places import Place, place_of_call, place_of_error
from prunus.graph.running import UNSEEN, FunctionMode, decomposed, named_tensors, on_meta, run
from prunus.graph.shapes import result_of
from prunus.graph.tape import Hints, Spot, Tape, varying

if TYPE_CHECKING:
    from prunus.graph.findings import Call
    from prunus.graph.settle import Recording, Runner, Steps

aten = torch.ops.aten


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
    """The first step of a smaller network that does not fit: where, and the modules that were running."""

    training: bool
    index: int
    place: Place
    modules: tuple[tuple[str, nn.Module], ...]
    error: str


@dataclass(frozen=True)
class Repair:
    """An attribute of all modules of a class that holds a size which an operation of theirs has along some axis."""

    kind: type[nn.Module]
    attribute: str
    index: int | str | None
    op: str
    spot: tuple[Any, ...]


@dataclass
class Repairs:
    """What was learnt about stored numbers: the repairs that helped, and by step what else may and what is tried."""

    accepted: list[Repair] = field(default_factory=list)
    attempts: dict[tuple[bool, int], Iterator[list[Repair]]] = field(default_factory=dict)
    current: dict[tuple[bool, int], list[Repair]] = field(default_factory=dict)

    def settings(self, steps: Mapping[bool, Steps], assembly: Assembly) -> tuple[SizeSetting, ...]:
        """Return what every module stores that a repair speaks of."""
        found: dict[tuple[str, str, int | str | None], SizeSetting] = {}
        for repair in self.accepted:
            for training in (False, True):
                for call, running in steps[training]:
                    if call.name != repair.op or running is None:
                        continue
                    for name, module in _near(running, assembly):
                        if type(module) is not repair.kind:
                            continue
                        part = _part(call, repair.spot, assembly)
                        if part is None or _held(module, repair.attribute, repair.index) != len(part):
                            continue
                        key = (name, repair.attribute, repair.index)
                        found.setdefault(
                            key,
                            SizeSetting(name, repair.attribute, (part,), repair.index, repair.index is None),
                        )
                        break
        return tuple(found.values())

    def resolve(self, problem: Problem, attempt: Attempt, hints: Hints) -> None:
        """Try the next way to take the step that did not fit: a stored number, the other axis, keeping it whole."""
        steps = attempt.recording.steps[problem.training]
        call, _ = steps[problem.index]
        if self.repair(problem, attempt):
            return
        taken = hints.taken.setdefault((problem.place, call.name), set())
        for how in ("equal", "proportional", "swapped", "tied", "frozen"):
            fits = {"swapped": "view" in call.name, "tied": call.name in _STORING}.get(how, True)
            if fits and how not in taken:
                taken.add(how)
                place = (problem.place, call.name)
                known = hints.pairs.pop(place, [])
                if how in ("equal", "proportional"):
                    pairs = _related(problem, attempt, how == "equal")
                    if all(pair in known for pair in pairs):
                        continue
                    hints.pairs[place] = pairs
                self.attempts.clear()
                self.current.clear()
                return
        _freeze_all(problem, hints)

    def repair(self, problem: Problem, attempt: Attempt) -> bool:
        """Set the next stored number, or numbers, that the step that did not fit may have its size from."""
        key = (problem.training, problem.index)
        if key not in self.attempts:
            self.attempts[key] = iter(self._ways(problem, attempt))
            self.current[key] = []
        for repair in self.current[key]:
            if repair in self.accepted:
                self.accepted.remove(repair)
        self.current[key] = []
        for way in self.attempts[key]:
            new = [repair for repair in way if repair not in self.accepted]
            if new:
                self.current[key] = new
                self.accepted += new
                return True
        return False

    def _ways(self, problem: Problem, attempt: Attempt) -> list[list[Repair]]:
        """List what may be set together: one attribute that fits at the step, then several of the module's."""
        steps = attempt.recording.steps[problem.training]
        call, running = steps[problem.index]
        single = [*self._candidates(call, problem, attempt)]
        if problem.index:
            single += self._candidates(steps[problem.index - 1][0], problem, attempt)
        by_attribute: dict[tuple[str, int | str | None], dict[bytes, Repair]] = {}
        for later, module in steps[problem.index :][:200]:
            if module == running:
                for repair in self._candidates(later, problem, attempt):
                    known = by_attribute.setdefault((repair.attribute, repair.index), {})
                    part = _part(later, repair.spot, attempt.assembly)
                    known.setdefault(b"" if part is None else part.tobytes(), repair)
        found = [*([repair] for repair in single), *_in_order(single)]
        every = [list(known.values()) for known in by_attribute.values()]
        for size in range(1, min(len(every), 3) + 1):
            for chosen in itertools.combinations(every, size):
                found += [list(way) for way in itertools.islice(itertools.product(*chosen), 8)]
        return found[:WAYS]

    def _candidates(self, call: Call, problem: Problem, attempt: Attempt) -> list[Repair]:
        """List the stored numbers that equal a size along which this step's channels run."""
        found: dict[tuple[type, str, int | str | None, bytes], Repair] = {}
        for spot, size in _spots(call, attempt.recording):
            part = _part(call, spot, attempt.assembly)
            if part is None or (part < 0).all():
                continue
            for _, module in problem.modules[:-4:-1]:
                for attribute, index in _holders(module, size):
                    repair = Repair(type(module), attribute, index, call.name, spot)
                    found.setdefault((type(module), attribute, index, part.tobytes()), repair)
        return [*found.values()]


def _in_order(repairs: Sequence[Repair]) -> list[list[Repair]]:
    """Put the entries of one tuple or list together: the k-th that equals a size for the k-th such size."""
    by_holder: dict[tuple[type, str], list[Repair]] = {}
    for repair in repairs:
        if repair.index is not None:
            by_holder.setdefault((repair.kind, repair.attribute), []).append(repair)
    ways = []
    for held in by_holder.values():
        entries = sorted({repair.index for repair in held}, key=str)
        chosen = []
        used: set[tuple[Any, ...]] = set()
        for entry in sorted(entries, key=lambda e: e if isinstance(e, int) else 0):
            fits = [r for r in held if r.index == entry and r.spot not in used]
            exact = [r for r in fits if r.spot[1] == entry] or sorted(fits, key=lambda r: str(r.spot))
            if exact:
                chosen.append(exact[0])
                used.add(exact[0].spot)
        ways.append(chosen)
    return [*ways, [repair for way in ways for repair in way]]


WAYS = 40
"""How many ways to repair one line are tried at most; each runs a smaller network once."""

_STORING = {"aten.split_with_sizes", "aten.slice", "aten.constant_pad_nd", "aten.cat"}


def _related(problem: Problem, attempt: Attempt, equal: bool) -> list[tuple[Spot, Spot]]:
    """Pair the axes of the step that did not fit with those of its module that are as long, or so many times."""
    steps = attempt.recording.steps[problem.training]
    users = [name for name, module in problem.modules if not type(module).__module__.startswith("torch.nn")]
    scope = users[-1] if users else ""
    found: dict[bytes, tuple[Spot, int]] = {}
    here: list[tuple[Spot, int]] = []
    for index, (call, running) in enumerate(steps):
        if running is None or not (running[0] == scope or running[0].startswith(f"{scope}." if scope else "")):
            continue
        for kind, tensors in (("out", call.outputs), ("in", call.inputs)):
            for number, tensor in enumerate(tensors):
                for axis in {axis for own in attempt.recording.traced.tape.read(tensor) for axis in varying(own)}:
                    ids = axis_ids(attempt.assembly, tensor, axis)
                    if ids is not None and (ids >= 0).all():
                        spot = (problem.training, index, kind, number, axis)
                        found.setdefault(ids.tobytes(), (spot, len(ids)))
                        here += [(spot, len(ids))] if index == problem.index else []
    return [
        (spot, other)
        for spot, size in here
        for other, length in found.values()
        if other != spot and (length == size if equal else length % size == 0 or size % length == 0)
    ]


def labels_at(tape: Tape, steps: Steps, spot: Spot) -> Tensor | None:
    """Return the labels along an axis of a tensor of a step, those of the first of its pieces."""
    _, index, kind, number, axis = spot
    if index >= len(steps):
        return None
    tensors = steps[index][0].outputs if kind == "out" else steps[index][0].inputs
    for own in tape.read(tensors[number]) if number < len(tensors) else ():
        if axis in varying(own):
            return own.movedim(axis, 0).reshape(own.shape[axis], -1)[:, 0]
    return None


def _freeze_all(problem: Problem, hints: Hints) -> None:
    """Keep all that the module touches, or the next one that holds it: this place still does not fit."""
    for name, _ in reversed(problem.modules):
        if name and name not in hints.modules:
            hints.modules.add(name)
            return
    hints.whole.append(problem.error)


def _near(running: tuple[str, nn.Module], assembly: Assembly) -> list[tuple[str, nn.Module]]:
    """Return the module that runs and those that hold it, innermost first."""
    name, module = running
    found = [(name, module)]
    while name:
        name = name.rpartition(".")[0]
        found.append((name, assembly.modules[name]))
    return found


def _holders(module: nn.Module, size: int) -> list[tuple[str, int | str | None]]:
    """List the attributes of a user's module that equal a size, or hold it in a tuple, list or dict."""
    allowed = _STORED if type(module).__module__.startswith("torch.nn") else None
    found: list[tuple[str, int | str | None]] = []
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training" or isinstance(value, bool):
            continue
        if allowed is not None and (name not in allowed or isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))):
            continue
        if type(value) is int and value == size:
            found.append((name, None))
        elif isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
            found += [(name, i) for i, item in enumerate(value) if item == size]
        elif isinstance(value, dict):
            found += [(name, key) for key, item in value.items() if type(item) is int and item == size]
    return found


_STORED = frozenset(
    {"normalized_shape", "num_features", "num_groups", "num_channels", "unflattened_size", "padding", "groups"}
)
"""The attributes of torch's own modules that count channels, beside those of convolutions and linear layers."""


def _held(module: nn.Module, attribute: str, index: int | str | None) -> int | None:
    value: Any = getattr(module, attribute, None)
    try:
        value = value if index is None else value[index]
    except (KeyError, IndexError, TypeError):
        return None
    return value if type(value) is int else None


def _spots(call: Call, recording: Recording) -> list[tuple[tuple[Any, ...], int]]:
    """List where along this step's tensors channels run, and how many there are: what a stored number may equal."""
    tape = recording.traced.tape
    found: list[tuple[tuple[Any, ...], int]] = []
    for kind, tensors in (("out", call.outputs), ("in", call.inputs)):
        for number, tensor in enumerate(tensors):
            axes = sorted({axis for own in tape.read(tensor) for axis in varying(own)})
            found += [((kind, number, axis), int(tensor.shape[axis])) for axis in axes]
    if call.name == "aten.slice":
        axis = call.arg(1, "dim", 0) % call.args[0].dim()
        bounds = [(place, bound) for place, bound in enumerate(call.args[2:4], 2) if type(bound) is int and bound > 0]
        found += [(("bound", place, axis), bound) for place, bound in bounds]
    if call.name == "aten.constant_pad_nd":
        for number, size in enumerate(call.args[1]):
            axis = call.out.dim() - 1 - number // 2
            if size > 0 and any(axis in varying(own) for own in tape.read(call.out)):
                found.insert(0, (("pad", number, axis), size))
    return found


def _part(call: Call, spot: tuple[Any, ...], assembly: Assembly) -> Ids | None:
    """Return the channel ids that a spot of a step counts, −1 for what always stays."""
    if spot[0] == "bound":  # the channels before it
        bound = call.args[spot[1]] if len(call.args) > spot[1] else None
        vector = axis_ids(assembly, call.args[0], spot[2])
        return None if vector is None or type(bound) is not int or not 0 < bound <= len(vector) else vector[:bound]
    if spot[0] == "pad":  # those of a margin
        vector = axis_ids(assembly, call.out, spot[2])
        size = call.args[1][spot[1]] if spot[1] < len(call.args[1]) else 0
        if vector is None or size <= 0:
            return None
        return vector[len(vector) - size :] if spot[1] % 2 else vector[:size]
    tensors = call.outputs if spot[0] == "out" else call.inputs
    if spot[1] >= len(tensors) or spot[2] >= tensors[spot[1]].dim():
        return None
    return axis_ids(assembly, tensors[spot[1]], spot[2])


def axis_ids(assembly: Assembly, tensor: Tensor, axis: int) -> Ids | None:
    """Return the channel ids along one axis of a tensor, those of the first of its pieces; None if none varies there.

    An axis of pieces keeps its length: it reads −1.
    """
    layout = assembly.traced.layout
    for own in assembly.traced.tape.read(tensor):
        if axis not in varying(own):
            continue
        vector = own.movedim(axis, 0).reshape(own.shape[axis], -1)[:, 0].numpy()
        ids: Ids = assembly.ids[vector]
        if len(varying(own)) > 1:
            known = vector[vector >= 0]
            bundles = layout.bundle[layout.component[known]]
            others = own.movedim(axis, 0).reshape(own.shape[axis], -1)[0].numpy()
            inside = layout.bundle[layout.component[others[others >= 0]]]
            if len(bundles) and (bundles == bundles[0]).all() and not (len(inside) and (inside == inside[0]).all()):
                return np.full(len(vector), -1)
        return ids
    return None


def first_problem(attempt: Attempt) -> Problem | None:
    """Run a smaller network on the meta device; return its first step whose shape is not what the trace says."""
    for seed in range(3):  # sizes that are equal once by chance are not thrice
        problem = _problem(attempt, _fewer(attempt, seed))
        if problem is not None:
            return problem
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
    for group in attempt.graph.groups:
        bundles = layout.bundle[prunable[group.channels]]
        known = np.unique(bundles)
        if len(known) > 1:
            least = min(max(2, len(known) // 4), len(known) - 1)
            stay = rng.permutation(known)[: int(rng.integers(least, len(known)))]
            keep[group.channels[~np.isin(bundles, stay)]] = False
    return keep


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


class _Watch(TorchDispatchMode):
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
