"""Run a network on the same batches once for every layer, each time only from the layer before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.graph.findings import tensors_in
from prunus.graph.running import DispatchMode, decomposed, plainly
from prunus.recovery.capturing import Captured, Heard, capture_all, only
from prunus.recovery.watching import LayerCall, LayerWatch

_READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
_HIDDEN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

Signature = tuple[torch.Size, torch.dtype]


class Rerun:
    """Captures layers of a network, a few at a time, on batches that come again and again.

    The operations of a forward pass are written down once. What those from the last captured layer on read is kept for
    each batch, as long as there is room, so that later layers are reached from there; nothing but that layer and what
    comes after it may change in between. A network that looks at numbers to decide what to do is run as a whole.

    Args:
        model: the network; its tensors may change in place.
        room: bytes that are kept at most, for all batches together.
    """

    def __init__(self, model: nn.Module, room: int) -> None:
        self.model, self.room = model, room
        self._tapes: dict[Signature, _Tape | None] = {}
        self._kept: dict[int, _Kept] = {}

    def capture(self, number: int, batch: Tensor, weight: str) -> Captured:
        """Return what `capture_all` tells of one layer.

        Raises:
            LookupError: the layer does not run on this batch.
        """
        return only(weight, lambda heard: self.capture_all(number, batch, [weight], heard))

    def capture_all(self, number: int, batch: Tensor, weights: Sequence[str], heard: Heard) -> None:
        """Tell `heard` of layers as `prunus.recovery.capturing.capture_all` does.

        Args:
            number: the batch's, by which it is known when it comes again.
            batch: the network's input.
            weights: names of the network's tensors, in any order; later calls ask for later layers.
            heard: is told of the layers.
        """
        tape = self._tape_of(batch)
        places = [tape.calls[weight] for weight in weights if weight in tape.calls] if tape is not None else []
        if tape is None or not places:
            capture_all(self.model, batch, weights, heard)
            return
        kept = self._kept.pop(number, None)
        self.room += kept.size if kept is not None else 0
        if kept is None or kept.step > min(places) or kept.tape is not tape:
            kept = _Kept(tape, 0, {0: batch})
        play = _Play(kept, max(places))
        capture_all(self.model, batch, weights, heard, play.run)
        if play.found is not None and play.found.size <= self.room:
            self._kept[number] = play.found
            self.room -= play.found.size

    def _tape_of(self, batch: Tensor) -> _Tape | None:
        signature = (batch.shape, batch.dtype)
        if signature not in self._tapes:
            self._tapes[signature] = _record(self.model, batch)
        return self._tapes[signature]


@dataclass(frozen=True)
class _Made:
    """Stands for a tensor that the network got or made, by its number; the input's is 0."""

    number: int


@dataclass(frozen=True)
class _Step:
    """One operation. `out` numbers the tensors that it makes, `over` those that nothing after it reads."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: tuple[int, ...]
    over: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Tape:
    """The operations of a forward pass, and which of them are the calls of layers, by the names of their weights."""

    steps: tuple[_Step, ...]
    calls: Mapping[str, int]


class _Recorder(DispatchMode):
    """Writes down operations; `hidden` where the path may depend on numbers that they make."""

    def __init__(self, batch: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.steps: list[_Step] = []
        self.hidden = False
        self._numbers = WeakTensorKeyDictionary()
        self._numbers[batch] = 0
        self._next = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = decomposed(self, func, args, kwargs)
        if out is not NotImplemented:
            return out
        self.hidden |= not _HIDDEN.isdisjoint(func.tags)
        read = (self._noted(args), self._noted(kwargs or {}))
        place = len(self.steps)
        out = func(*args, **(kwargs or {}))
        assert len(self.steps) == place, "an operation is one step"
        self.steps.append(_Step(func, *read, tuple(self._number(tensor) for tensor in tensors_in(out))))
        return out

    def _noted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            number = self._numbers.get(value)
            return value if number is None else _Made(number)
        if isinstance(value, dict):
            return {key: self._noted(item) for key, item in value.items()}
        return type(value)(map(self._noted, value)) if isinstance(value, (list, tuple)) else value

    def _number(self, tensor: Tensor) -> int:
        """Return the number of a tensor; one that was changed in place keeps its own."""
        if tensor not in self._numbers:
            self._numbers[tensor] = self._next
            self._next += 1
        return int(self._numbers[tensor])


class _Reads(TorchFunctionMode):
    """Notices numbers that leave for Python without an operation."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= func in _READS
        return func(*args, **(kwargs or {}))


def _record(model: nn.Module, batch: Tensor) -> _Tape | None:
    """Write down what a network does with a batch; None where that depends on more than the batch's shape."""
    recorder, reads = _Recorder(batch), _Reads()
    calls: dict[str, int] = {}

    def heard(call: LayerCall) -> None:
        calls.setdefault(call.weight, len(recorder.steps))

    with plainly(), reads, LayerWatch(model, heard), recorder:
        model(batch)
    if recorder.hidden or reads.seen:
        return None
    last = {number: place for place, step in enumerate(recorder.steps) for number in (*_numbers(step), *step.out)}
    over: dict[int, list[int]] = {}
    for number, place in last.items():
        over.setdefault(place, []).append(number)
    steps = (
        _Step(step.func, step.args, step.kwargs, step.out, tuple(over.get(place, ())))
        for place, step in enumerate(recorder.steps)
    )
    return _Tape(tuple(steps), calls)


def _numbers(step: _Step) -> Iterable[int]:
    return (made.number for made in _made_in((step.args, tuple(step.kwargs.values()))))


def _made_in(value: Any) -> Iterable[_Made]:
    if isinstance(value, _Made):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _made_in(item)


@dataclass(frozen=True)
class _Kept:
    """What the operations from a step on read of those before, by number."""

    tape: _Tape
    step: int
    live: Mapping[int, Tensor]

    @cached_property
    def size(self) -> int:
        """Bytes of memory that it holds; tensors may share theirs."""
        storages = map(Tensor.untyped_storage, self.live.values())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class _Play:
    """Runs operations from a step on, and keeps what those from a later step on read."""

    def __init__(self, start: _Kept, until: int) -> None:
        self.start, self.until = start, until
        self.found: _Kept | None = None

    def run(self) -> None:
        tape, live = self.start.tape, dict(self.start.live)
        for place in range(self.start.step, len(tape.steps)):
            step = tape.steps[place]
            if place == self.until:
                self.found = _Kept(tape, place, dict(live))
            args, kwargs = _filled(step.args, live), _filled(step.kwargs, live)
            if step.func._schema.is_mutable and self._is_kept((args, tuple(kwargs.values()))):
                self.found = None
            out = step.func(*args, **kwargs)
            live.update(zip(step.out, tensors_in(out), strict=True))
            for number in step.over:
                live.pop(number, None)

    def _is_kept(self, value: Any) -> bool:
        """Tell whether one of these tensors shares its memory with what is kept, which it may be about to change."""
        if self.found is None:
            return False
        held = {tensor.untyped_storage().data_ptr() for tensor in self.found.live.values()}
        return any(tensor.untyped_storage().data_ptr() in held for tensor in tensors_in(value))


def _filled(value: Any, live: Mapping[int, Tensor]) -> Any:
    """Return arguments with the tensors in their places."""
    if isinstance(value, _Made):
        return live[value.number]
    if isinstance(value, dict):
        return {key: _filled(item, live) for key, item in value.items()}
    return type(value)(_filled(item, live) for item in value) if isinstance(value, (list, tuple)) else value
