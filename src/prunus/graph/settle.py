"""Trace a network, then run smaller ones to see that the sizes in the user's code follow; settle what does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunus.errors import TraceError
from prunus.graph.assemble import Assembly
from prunus.graph.channels import ChannelGraph
from prunus.graph.labels import Hints
from prunus.graph.levels import find_levels
from prunus.graph.members import Members
from prunus.graph.places import Place
from prunus.graph.recording import Recording, Runner
from prunus.graph.repairs import Repairs
from prunus.graph.sizes import Attempt, first_problem

ROUNDS = 100
"""How often a network is traced anew at most before everything that is still in doubt is kept whole."""


def settled(model: nn.Module, args: tuple[Any, ...], *, thorough: bool = False) -> ChannelGraph:
    """Trace a model until what a smaller one does agrees with what the trace says."""
    members = _accepted(model)
    runner = Runner(args, thorough=thorough)

    def settle(hints: Hints) -> tuple[ChannelGraph, Assembly]:
        return _settled(model, members, runner, hints, thorough=thorough)

    graph, assembly = settle(Hints())
    for key in [*graph.hints[0].pairs][:SWAPS] if assembly.tied else ():
        hints = _copied(graph.hints[0])
        hints.pairs.pop(key, None)
        hints.taken.setdefault(key, set()).update(("equal", "proportional"))
        graph, assembly = max(
            (graph, assembly), _settled(model, members, runner, hints, thorough=thorough), key=_channels
        )
    for key in _doubtful(assembly)[:SWAPS]:
        hints = _copied(graph.hints[0])
        hints.taken.setdefault(key, set()).add("swapped")
        graph, assembly = max(
            (graph, assembly), _settled(model, members, runner, hints, thorough=thorough), key=_channels
        )
    return graph


def _channels(found: tuple[ChannelGraph, Assembly]) -> int:
    return found[0].channel_count


def _copied(hints: Hints) -> Hints:
    taken = {place: set(how) for place, how in hints.taken.items()}
    return Hints(taken, dict(hints.pairs), set(hints.modules), set(hints.deciding))


SWAPS = 4
"""How many lines of code are tried another way, where what they touch stays whole."""


def _settled(
    model: nn.Module, members: Members, runner: Runner, hints: Hints, *, thorough: bool
) -> tuple[ChannelGraph, Assembly]:
    repairs = Repairs()
    problem = None
    for _ in range(ROUNDS):
        recording = runner.record(model, hints, members=members)
        if not runner.is_meta and (deciding := _deciding(recording, members) - hints.deciding):
            hints.deciding |= deciding
            recording = runner.record(model, hints, members=members)
        assembly = find_levels(model, runner, recording, Assembly(recording.traced), repairs, hints)
        graph = dataclasses.replace(assembly.graph(), runner=runner, hints=(hints, recording.traced.tape.choices))
        if not (thorough or recording.traced.tape.is_risky) or not graph.groups:
            return graph, assembly
        attempt = Attempt(model, runner, recording, assembly, graph, repairs)
        problem = first_problem(attempt)
        while problem is not None and repairs.repair(problem, attempt):
            found = first_problem(attempt)
            # What breaks a step that had fitted is no repair: the next one is tried instead.
            problem = problem if found is not None and found.comes_before(problem) else found
        if problem is None:
            settings = repairs.settings(recording.steps, assembly)
            return dataclasses.replace(graph, settings=(*graph.settings, *settings)), assembly
        repairs.resolve(problem, attempt, hints)
        if hints.whole:
            break
    if not hints.whole:
        hints.whole.append(problem.error if problem else "")
    assembly = Assembly(runner.record(model, hints, members=members).traced)
    return dataclasses.replace(assembly.graph(), runner=runner, hints=(hints, {})), assembly


def _deciding(recording: Recording, members: Members) -> set[str]:
    """Name the modules that read a value and hold layers that did not run: another value may let these run."""
    steps = [*recording.steps[False], *recording.steps[True]]
    ran = {running[0] for _, running in steps if running is not None}
    reading = {running[0] for call, running in steps if running is not None and call.name in _READING}
    silent = [name for name, module in members.modules.items() if name not in ran and module._parameters]
    return {name for name in reading if any(other.startswith(f"{name}." if name else "") for other in silent)}


_READING = {"aten._local_scalar_dense", "aten.is_nonzero"}


def _doubtful(assembly: Assembly) -> list[tuple[Place, str]]:
    """List the lines that lay channels out along several axes where not one of these channels can go."""
    found = []
    for key, fields in assembly.traced.tape.splits.items():
        ids = [assembly.ids[own.numpy()] for own in fields]
        if ids and all((own < 0).all() for own in ids):
            found.append(key)
    return found


def _accepted(model: nn.Module) -> Members:
    """Return the members of a model that can be run on labels; say what cannot."""
    members = Members(model)
    scripted = [name for name, module in members.modules.items() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise TraceError(
            f"{scripted[0] or 'this'} is a TorchScript module, whose code cannot be followed; give the module it was "
            "made of."
        )
    compiled = [name for name, module in members.modules.items() if "_orig_mod" in module._modules]
    if compiled:
        raise TraceError(
            f"{f'{compiled[0]} in this module' if compiled[0] else 'this module'} was compiled; give what was "
            f"compiled, {'.'.join(filter(None, ('model', compiled[0])))}._orig_mod, and compile the pruned "
            "network again."
        )
    for name, tensor in members.tensors:
        if is_lazy(tensor):
            raise TraceError(f"{name} has no shape yet; run the model once on real inputs before it is pruned.")
    return members
