"""Training mode does most of what evaluation mode does: what it repeats needs no rule a second time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.graph.findings import Call
from prunus.graph.labels import Fields
from prunus.graph.tape import Tape

_BATCH_NORM = torch.ops.aten.native_batch_norm.default


def _fits(tensor: Tensor, fields: Fields) -> bool:
    return all(n in (1, size) for own in fields for n, size in zip(own.shape, tensor.shape, strict=True))


class Known:
    """Follows a second run beside the steps of the first, and gives its tensors the fields of their twins there."""

    def __init__(self, steps: Sequence[Call], copies: int) -> None:
        self.steps = steps
        self.copies = copies
        self.next = 0
        self.twins: dict[int, Tensor] = {}

    def covers(self, tape: Tape, call: Call) -> bool:
        """Say whether a call repeats the first run's next step; its results then carry what that step's do."""
        if self.next < len(self.steps):
            step = self.steps[self.next]
            if step.func is call.func and self._same(tape, call, step):
                self.next += 1
                if not all(map(_fits, call.outputs, (tape.read(twin) for twin in step.outputs))):
                    return False  # an axis that holds the batch and channels is longer here
                for out, twin in zip(call.outputs, step.outputs, strict=False):
                    tape.take_over(out, twin)
                    self.twins[id(out)] = twin
                if call.func is _BATCH_NORM:
                    self._statistics(tape, call)
                return True
        if torch.Tag.pointwise in call.func.tags or "dropout" in call.name:
            self._pass_on(tape, call)
        return False

    def _statistics(self, tape: Tape, call: Call) -> None:
        """Let the statistics that training mode takes run along the channels, as the result does."""
        out, *saved = call.outputs
        for own in tape.read(out):
            if own.numel() == own.shape[1] == out.shape[1]:
                for tensor in saved:
                    tape.write(tensor, [own.reshape(-1)] if tensor.numel() == own.numel() else [], is_compact=True)

    def _pass_on(self, tape: Tape, call: Call) -> None:
        """Let what only one labelled tensor went into, element by element, be a twin of that one's."""
        labelled = [tensor for tensor in call.inputs if tape.read(tensor)]
        if len(labelled) == 1 and id(labelled[0]) in self.twins:
            for out in call.outputs:
                if out.shape == labelled[0].shape:
                    self.twins[id(out)] = self.twins[id(labelled[0])]

    def _same(self, tape: Tape, call: Call, step: Call) -> bool:
        if len(call.args) != len(step.args) or call.kwargs.keys() != step.kwargs.keys():
            return False
        for number, (now, then) in enumerate(zip(call.args, step.args, strict=True)):
            if not self._equal(tape, now, then) and not (call.func is _BATCH_NORM and number == 5):
                return False
        return all(self._equal(tape, value, step.kwargs[key]) for key, value in call.kwargs.items())

    def _equal(self, tape: Tape, now: Any, then: Any) -> bool:
        if isinstance(now, Tensor):
            if not isinstance(then, Tensor):
                return False
            if now is then or self.twins.get(id(now)) is then:
                return True
            plain = not tape.read(now) and not tape.read(then) and tape.even(now) == tape.even(then)
            return plain and now.dim() == then.dim() and now.shape[1:] == then.shape[1:]
        if isinstance(now, (list, tuple)):
            if not isinstance(then, (list, tuple)) or len(now) != len(then):
                return False
            return all(self._equal(tape, a, b) for a, b in zip(now, then, strict=True))
        if type(now) is int and type(then) is int:
            return now == then or now == self.copies * then
        return bool(now == then)
