"""Trace a network, then run smaller ones to see that the sizes in the user's code follow; settle what does not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from prunus.errors import TraceError
from prunus.graph.assemble import Assembly
from prunus.graph.channels import ChannelGraph
from prunus.graph.findings import Call, Findings, tensors_in
from prunus.graph.known import Known
from prunus.graph.labels import Choices, Hints
from prunus.graph.levels import find_levels
from prunus.graph.members import Members, meta_copies, named_tensors, real_copies
from prunus.graph.numbering import label_all
from prunus.graph.places import Place
from prunus.graph.repairs import Repairs
from prunus.graph.running import FunctionMode, LabelMode, run, sized
from prunus.graph.sizes import Attempt, first_problem
from prunus.graph.spots import labels_at
from prunus.graph.tape import Tape
from prunus.graph.uses import State, Traced

ROUNDS = 100
"""How often a network is traced anew at most before everything that is still in doubt is kept whole."""

Steps = list[tuple[Call, tuple[str, nn.Module] | None]]


@dataclasses.dataclass
class Recording:
    """A trace with the steps of both modes."""

    traced: Traced
    steps: dict[bool, Steps]


class Runner:
    """Runs one model on labels, as often as asked, in both modes and on the inputs that it takes."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self.old = batch_of(args)
        self.is_meta = True
        self.copies = 2

    def record(self, model: nn.Module, hints: Hints | None = None, guide: Choices | None = None) -> Recording:
        """Trace the model once, with the choices of a wider one as a guide.

        Where it needs them, it gets its own batch in training too, then real inputs.
        """
        first: Exception | None = None
        last: Exception = RuntimeError("it was not run")
        for is_meta, copies in ((True, 2), (True, 1), (False, 2), (False, 1)):
            if (is_meta and not self.is_meta) or copies > self.copies:
                continue  # an earlier trace of this network has shown that this does not do
            if guide is not None and (is_meta, copies) != (self.is_meta, self.copies):
                continue  # a smaller network runs as the wide one did, or not at all
            try:
                recording = self._record(model, Tape(hints, guide), is_meta, copies)
            except TraceError:
                raise
            except Exception as error:
                first = first or error
                last = error
                continue
            self.is_meta, self.copies = is_meta, copies
            return recording
        raise TraceError(_refusal(last, self.args)) from first

    def _record(self, model: nn.Module, tape: Tape, is_meta: bool, copies: int) -> Recording:
        members = Members(model)
        copies_of = meta_copies(members) if is_meta else real_copies(members)
        state = {name: copies_of[id(tensor)] for name, tensor in members.tensors}
        label_all(tape, members, state)
        steps: dict[bool, Steps] = {}
        found = {}
        for training in (False, True):
            findings = Findings(batch=(copies if training else 1) * self.old)
            steps[training] = []
            known = Known([call for call, _ in steps[False]], copies) if training and is_meta else None
            self.once(
                model,
                members,
                copies_of,
                tape,
                findings,
                steps[training],
                known,
                training=training,
                is_meta=is_meta,
                copies=copies,
            )
            found[training] = findings
        for one, other in itertools.chain(*tape.hints.pairs.values()):
            ends = [labels_at(tape, steps[spot[0]], spot) for spot in (one, other)]
            if ends[0] is not None and ends[1] is not None:
                tape.related(ends[0], ends[1])
        if tape.hints.whole:
            tape.freeze(torch.arange(tape.label_count), f"a smaller network does not run ({tape.hints.whole[0]})")
        state_of = State(state, members.parameters, frozenset(model.state_dict(keep_vars=True)))
        traced = Traced.of(members.modules, tape, found[False], found[True], state_of)
        return Recording(traced, steps)

    def once(
        self,
        model: nn.Module,
        members: Members,
        state: Mapping[int, Tensor],
        tape: Tape,
        findings: Findings,
        steps: Steps,
        known: Known | None,
        *,
        training: bool,
        is_meta: bool,
        copies: int,
    ) -> None:
        """Run the model once in one mode and freeze what reaches its outputs."""
        tape.mode, tape.calls = ("train" if training else "eval"), 0
        mode = LabelMode(tape, findings, steps)
        mode.is_meta = is_meta
        mode.known = known
        args = self.inputs(training, is_meta=is_meta, copies=copies)
        modes = (FunctionMode(tape, is_meta=is_meta), mode)
        result = run(model, state, args, modes, tape.modules, training=training, members=members)
        tape.modules.clear()
        tape.op = ""
        outputs = [leaf for leaf in tree_leaves(_plain(result)) if isinstance(leaf, Tensor)]
        tape.freeze_tensors(outputs, "it is an output of the model")

    def inputs(self, training: bool, *, is_meta: bool, copies: int) -> list[Any]:
        """Return the arguments for one run, in training `copies` times the batch: BatchNorm refuses single values."""
        count = (copies if training else 1) * self.old
        return [sized(arg, count, self.old, is_meta=is_meta) for arg in self.args]


def settled(model: nn.Module, args: tuple[Any, ...], *, thorough: bool = False) -> ChannelGraph:
    """Trace a model until what a smaller one does agrees with what the trace says."""
    _refuse(model)
    runner = Runner(args)
    graph, assembly = _settled(model, runner, Hints(), thorough=thorough)
    for key in [*graph.hints[0].pairs][:SWAPS] if assembly.tied else ():
        hints = _copied(graph.hints[0])
        hints.pairs.pop(key, None)
        hints.taken.setdefault(key, set()).update(("equal", "proportional"))
        graph, assembly = max((graph, assembly), _settled(model, runner, hints, thorough=thorough), key=_channels)
    for key in _doubtful(assembly)[:SWAPS]:
        hints = _copied(graph.hints[0])
        hints.taken.setdefault(key, set()).add("swapped")
        graph, assembly = max((graph, assembly), _settled(model, runner, hints, thorough=thorough), key=_channels)
    return graph


def _channels(found: tuple[ChannelGraph, Assembly]) -> int:
    return found[0].channel_count


def _copied(hints: Hints) -> Hints:
    return Hints({place: set(how) for place, how in hints.taken.items()}, dict(hints.pairs), set(hints.modules))


SWAPS = 4
"""How many lines of code are tried another way, where what they touch stays whole."""


def _settled(model: nn.Module, runner: Runner, hints: Hints, *, thorough: bool) -> tuple[ChannelGraph, Assembly]:
    repairs = Repairs()
    problem = None
    for _ in range(ROUNDS):
        recording = runner.record(model, hints)
        assembly = find_levels(model, runner, recording, Assembly(recording.traced), repairs, hints)
        graph = dataclasses.replace(assembly.graph(), runner=runner, hints=(hints, recording.traced.tape.choices))
        if not (thorough or recording.traced.tape.is_risky) or not graph.groups:
            return graph, assembly
        attempt = Attempt(model, runner, recording, assembly, graph, repairs)
        problem = first_problem(attempt)
        while problem is not None and repairs.repair(problem, attempt):
            problem = first_problem(attempt)
        if problem is None:
            settings = repairs.settings(recording.steps, assembly)
            return dataclasses.replace(graph, settings=(*graph.settings, *settings)), assembly
        repairs.resolve(problem, attempt, hints)
        if hints.whole:
            break
    if not hints.whole:
        hints.whole.append(problem.error if problem else "")
    assembly = Assembly(runner.record(model, hints).traced)
    return dataclasses.replace(assembly.graph(), runner=runner, hints=(hints, {})), assembly


def _doubtful(assembly: Assembly) -> list[tuple[Place, str]]:
    """List the lines that lay channels out along several axes where not one of these channels can go."""
    found = []
    for key, fields in assembly.traced.tape.splits.items():
        ids = [assembly.ids[own.numpy()] for own in fields]
        if ids and all((own < 0).all() for own in ids):
            found.append(key)
    return found


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


def _refuse(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("this is a TorchScript module, whose code cannot be followed; give the module it was made of.")
    compiled = [name for name, module in model.named_modules() if hasattr(module, "_orig_mod")]
    if compiled:
        raise TraceError(
            f"{f'{compiled[0]} in this module' if compiled[0] else 'this module'} was compiled; give what was "
            f"compiled, {'.'.join(filter(None, ('model', compiled[0])))}._orig_mod, and compile the pruned "
            "network again."
        )
    for name, tensor in named_tensors(model):
        if is_lazy(tensor):
            raise TraceError(f"{name} has no shape yet; run the model once on real inputs before it is pruned.")


def _refusal(error: Exception, args: tuple[Any, ...]) -> str:
    shapes = [tuple(tensor.shape) for tensor in tensors_in(list(args))]
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"the model could not be run, neither on channel labels nor on its real inputs: {text}. It was given inputs of "
        f"shapes {shapes}; check example_inputs: model(*example_inputs) should run in evaluation and training mode."
    )
