"""What the dispatcher shows a rule, and what rules note beside labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor
from torch._ops import OpOverload

from prunus.graph.labels import Fields


@dataclass(frozen=True)
class Call:
    """One operation as the dispatcher saw it."""

    func: OpOverload[Any, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """The operation's name, e.g. ``aten.relu``."""
        return name_of(self.func)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments, in order."""
        return tensors_in((self.args, tuple(self.kwargs.values())))

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Every tensor of the result."""
        return tensors_in(self.out)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Contracted(NamedTuple):
    """A weight that met an activation: its tensor, what comes out and goes in, and the positions per example.

    `outgoing` are the labels of the result's channels, (C_out,), `incoming` those that are consumed, `output_axis` and
    `input_axis` the weight's axes for them. `computed` allows the weight to be computed from a parameter; a product of
    two activations has no weight at all.
    """

    weight: Tensor
    bias: Tensor | None
    result: Tensor
    output_axis: int
    input_axis: int
    positions: int
    outgoing: Tensor
    incoming: Tensor
    groups: int = 1
    computed: bool = True


class Normalised(NamedTuple):
    """A BatchNorm: what it read, its tensors, ε and what came out."""

    source: Tensor
    tensors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    eps: float
    result: Tensor


@dataclass(frozen=True)
class Sited:
    """The k-th call of an operation in one forward pass, and the labels that its operands and results carry.

    What a proof must do there: `gathers` computes over the kept channels alone (a norm's statistics); otherwise the
    removed channels of the first operand are silenced (a contraction). `ordered` is the axis of the first operand along
    which the order of what is gathered matters, if it does (a sum so far). `runs` are, by operand and then by result,
    the axes that their fields' channels run along; empty where nothing is gathered.
    """

    op: str
    index: int
    gathers: bool
    operands: tuple[Fields, ...]
    results: tuple[Fields, ...]
    ordered: int | None = None
    runs: tuple[tuple[int, ...], ...] = ()


@dataclass
class Findings:
    """What the rules note beside labels.

    `batch` is the number of examples that run at once; `activations` are the results of the non-linearities, and
    `rectified` what the rectifiers among them read.
    """

    batch: int = 1
    contractions: list[Contracted] = field(default_factory=list)
    norms: list[Normalised] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    rectified: list[Tensor] = field(default_factory=list)
    sites: list[Sited] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def site(
        self,
        call: Call,
        operands: list[Fields],
        results: list[Fields],
        *,
        gathers: bool,
        ordered: int | None = None,
        runs: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        """Note what a proof must do at this call."""
        index = self.counts[call.name] - 1
        self.sites.append(Sited(call.name, index, gathers, tuple(operands), tuple(results), ordered, runs))


_NAMES: dict[int, str] = {}  # by the id of an operation, which lives as long as torch does


def name_of(func: OpOverload[Any, Any]) -> str:
    """Return an operation's name, e.g. ``aten.relu``."""
    name = _NAMES.get(id(func))
    if name is None:
        name = _NAMES[id(func)] = str(func.overloadpacket)
    return name


def tensors_in(value: object) -> list[Tensor]:
    """Return every tensor inside nested lists and tuples."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: object, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, found)
