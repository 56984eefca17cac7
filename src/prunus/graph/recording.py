"""Run a model on labels in both modes, and keep what was seen."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.errors import TraceError
from prunus.graph.alike import ModuleCall, Readers, repeats
from prunus.graph.findings import Call, Findings, tensors_in
from prunus.graph.known import Known
from prunus.graph.labels import Choices, Hints
from prunus.graph.members import Members, meta_copies, real_copies
from prunus.graph.numbering import label_all
from prunus.graph.running import FunctionMode, LabelMode, called, run, sized
from prunus.graph.spots import labels_at
from prunus.graph.tape import Tape
from prunus.graph.uses import State, Traced

Steps = list[tuple[Call, tuple[str, nn.Module] | None]]


@dataclasses.dataclass
class Recording:
    """A trace with the steps of both modes."""

    traced: Traced
    steps: dict[bool, Steps]


class Runner:
    """Runs one model on labels, as often as asked, in both modes and on the inputs that it takes."""

    def __init__(self, args: tuple[Any, ...], *, thorough: bool = False) -> None:
        self.args = args
        self.old = batch_of(args)
        self.is_meta = True
        self.copies = 2
        self.trains = True if thorough else None

    def record(
        self,
        model: nn.Module,
        hints: Hints | None = None,
        guide: Choices | None = None,
        members: Members | None = None,
    ) -> Recording:
        """Trace the model once, with the choices of a wider one as a guide; its members, if they are known.

        Where it needs them, it gets its own batch in training too, then real inputs.
        """
        first: Exception | None = None
        last: Exception = RuntimeError("it was not run")
        members = members or Members(model)
        for is_meta, copies in ((True, 2), (True, 1), (False, 2), (False, 1)):
            if (is_meta and not self.is_meta) or copies > self.copies:
                continue  # an earlier trace of this network has shown that this does not do
            if guide is not None and (is_meta, copies) != (self.is_meta, self.copies):
                continue  # a smaller network runs as the wide one did, or not at all
            try:
                recording = self._record(model, members, Tape(hints, guide), is_meta, copies)
            except TraceError:
                raise
            except Exception as error:
                first = first or error
                last = error
                continue
            self.is_meta, self.copies = is_meta, copies
            return recording
        raise TraceError(_refusal(last, self.args)) from first

    def _record(self, model: nn.Module, members: Members, tape: Tape, is_meta: bool, copies: int) -> Recording:
        copies_of = meta_copies(members) if is_meta else real_copies(members)
        state = {name: copies_of[id(tensor)] for name, tensor in members.tensors}
        label_all(tape, members, state)
        steps: dict[bool, Steps] = {}
        found = {}
        trains = self.trains if is_meta else True
        for training in (False, True):
            findings = found[training] = Findings(batch=(copies if training else 1) * self.old)
            steps[training] = []
            if training and not (trains or tape.is_risky):
                continue
            once = Once(model, members, copies_of, tape, findings, steps[training], training, is_meta, copies)
            if training:
                once.run(self, Known([call for call, _ in steps[False]], copies) if is_meta else None)
            elif trains is None:
                trains = not once.run_and_compare(self)
            else:
                once.run(self, None)
        self.trains = trains
        for one, other in itertools.chain(*tape.hints.pairs.values()):
            ends = [labels_at(tape, steps[spot[0]], spot) for spot in (one, other)]
            if ends[0] is not None and ends[1] is not None:
                tape.related(ends[0], ends[1])
        if tape.hints.whole:
            tape.freeze(torch.arange(tape.label_count), f"a smaller network does not run ({tape.hints.whole[0]})")
        state_of = State(state, members.parameters, members.saved)
        traced = Traced.of(members.modules, tape, found[False], found[True], state_of)
        return Recording(traced, steps)

    def inputs(self, training: bool, *, is_meta: bool, copies: int) -> list[Any]:
        """Return the arguments for one run, in training `copies` times the batch: BatchNorm refuses single values."""
        count = (copies if training else 1) * self.old
        return [sized(arg, count, self.old, is_meta=is_meta) for arg in self.args]


@dataclasses.dataclass
class Once:
    """One run of a model in one mode: what it needs, and where it writes."""

    model: nn.Module
    members: Members
    state: Mapping[int, Tensor]
    tape: Tape
    findings: Findings
    steps: Steps
    training: bool
    is_meta: bool
    copies: int

    def run(
        self,
        runner: Runner,
        known: Known | None,
        readers: Readers | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Run the model and freeze what reaches its outputs."""
        tape = self.tape
        tape.mode, tape.calls = ("train" if self.training else "eval"), 0
        modes = (FunctionMode(tape, is_meta=self.is_meta), self._watch(self.findings, self.steps, known))
        args = runner.inputs(self.training, is_meta=self.is_meta, copies=self.copies)
        result = run(
            self.model,
            self.state,
            args,
            modes,
            tape.modules,
            training=self.training,
            members=self.members,
            readers=readers,
            then=then,
        )
        tape.modules.clear()
        tape.op = ""
        outputs = [leaf for leaf in tree_leaves(_plain(result)) if isinstance(leaf, Tensor)]
        tape.freeze_tensors(outputs, "it is an output of the model")

    def run_and_compare(self, runner: Runner) -> bool:
        """Run the model in evaluation mode; say whether training mode would do the same to channels."""
        readers = Readers(self.steps)
        verdicts: list[bool] = []

        def compare() -> None:
            if not self.tape.is_risky:
                self.tape.mode, self.tape.calls = "train", 0
                verdicts.append(repeats(readers, self.model, lambda call: self._repeats(runner, call)))

        self.run(runner, None, readers, compare)
        return verdicts == [True]

    def _repeats(self, runner: Runner, call: ModuleCall) -> bool:
        """Run one module in training mode on what it was given; say whether it does to channels what it did before."""
        known = Known(
            [step for step, _ in itertools.islice(self.steps, call.steps.start, call.steps.stop)], self.copies
        )

        def twin(value: Any) -> Any:
            made = sized(value, runner.old * self.copies, runner.old, is_meta=True)
            for new, old in zip(tree_leaves(made), tree_leaves(value), strict=True):
                if isinstance(new, Tensor):
                    self.tape.take_over(new, old)
                    known.twins[id(new)] = old
            return made

        args, kwargs = twin(list(call.args)), twin(dict(call.kwargs))
        watch = self._watch(Findings(), [], known)
        for module in call.module.modules():
            vars(module)["training"] = True
        try:
            out = called(call.module, args, kwargs, (FunctionMode(self.tape, is_meta=True), watch))
        except Exception:  # the whole model will say what is wrong, if anything is
            return False
        finally:
            for module in call.module.modules():
                vars(module)["training"] = False
        if known.next < len(known.steps) or any(self.tape.read(t) for step in watch.unknown for t in step.inputs):
            return False
        outs, before = tree_leaves(out), tree_leaves(call.out)
        return len(outs) == len(before) and all(
            known.twins.get(id(new)) is old if isinstance(new, Tensor) else new is old
            for new, old in zip(outs, before, strict=True)
        )

    def _watch(self, findings: Findings, steps: Steps, known: Known | None) -> LabelMode:
        watch = LabelMode(self.tape, findings, steps)
        watch.is_meta, watch.known = self.is_meta, known
        return watch


def batch_of(args: Sequence[Any]) -> int:
    """Return how many examples the first tensor argument holds."""
    tensors = [leaf for leaf in tree_leaves(list(args)) if isinstance(leaf, Tensor)]
    if not tensors or not tensors[0].dim():
        raise TraceError(
            "example_inputs holds no tensor with a batch axis; give one such as torch.randn(1, 3, 32, 32)."
        )
    return int(tensors[0].shape[0])


def _plain(result: Any) -> Any:
    """Return a result's parts; those of a dataclass or a dict-like object too, which the tree library may not know."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return [getattr(result, f.name) for f in dataclasses.fields(result)]
    if hasattr(result, "values") and not isinstance(result, Tensor):
        return [_plain(value) for value in result.values()]
    if isinstance(result, (list, tuple)):
        return [_plain(value) for value in result]
    return result


def _refusal(error: Exception, args: tuple[Any, ...]) -> str:
    shapes = [tuple(tensor.shape) for tensor in tensors_in(list(args))]
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"the model could not be run, neither on channel labels nor on its real inputs: {text}. It was given inputs of "
        f"shapes {shapes}; check example_inputs: model(*example_inputs) should run in evaluation and training mode."
    )
