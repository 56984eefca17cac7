"""Numbers that modules store: which of them a step that does not fit may have its size from, and what to try next."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from prunus.graph.channels import SizeSetting
from prunus.graph.labels import Hints
from prunus.graph.spots import part_at, related, spots_of

if TYPE_CHECKING:
    from prunus.graph.assemble import Assembly
    from prunus.graph.findings import Call
    from prunus.graph.recording import Steps
    from prunus.graph.sizes import Attempt, Problem


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
                        part = part_at(call, repair.spot, assembly)
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
                    pairs = [
                        pair for p in _everywhere(problem, attempt) for pair in related(p, attempt, how == "equal")
                    ]
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
                    part = part_at(later, repair.spot, attempt.assembly)
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
        for spot, size in spots_of(call, attempt.recording):
            part = part_at(call, spot, attempt.assembly)
            if part is None or (part < 0).all():
                continue
            for module in _candidates_near(problem):
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


def _everywhere(problem: Problem, attempt: Attempt) -> list[Problem]:
    """Return the problem at the like steps of all modules of the class that was running."""
    steps = attempt.recording.steps[problem.training]
    call, running = steps[problem.index]
    if running is None or not problem.modules or problem.modules[-1][0] != running[0]:
        return [problem]
    return [
        problem if index == problem.index else dataclasses.replace(problem, index=index, modules=(module,))
        for index, (other, module) in enumerate(steps)
        if other.name == call.name and module is not None and type(module[1]) is type(running[1])
    ]


def _freeze_all(problem: Problem, hints: Hints) -> None:
    """Keep all that the module touches, or the next one that holds it: this place still does not fit."""
    for name, _ in reversed(problem.modules):
        if name and name not in hints.modules:
            hints.modules.add(name)
            return
    hints.whole.append(problem.error)


def _candidates_near(problem: Problem) -> list[nn.Module]:
    """Return the three innermost modules that were running, and the children of the innermost."""
    modules = [module for _, module in problem.modules[:-4:-1]]
    return [*modules, *modules[0].children()] if modules else []


def _near(running: tuple[str, nn.Module], assembly: Assembly) -> list[tuple[str, nn.Module]]:
    """Return the module that runs, its children, and those that hold it, innermost first."""
    name, module = running
    prefix = f"{name}." if name else ""
    found = [(name, module), *((prefix + child, part) for child, part in module.named_children())]
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
