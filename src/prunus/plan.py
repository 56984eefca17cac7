"""Pruning plans: which channels of each group stay, as plain data that prints well and goes into a file and back."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import lt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunus.cost import Cost, Count, format_bytes, format_count, format_latency, predict_cost
from prunus.errors import FileFormatError, PlanError
from prunus.files import atomic_write_text, read_bytes
from prunus.graph.channels import ChannelGraph, ChannelGroup, Keep

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT_VERSION: Literal[1] = 1
_MAX_BYTES = 64 * 10**6  # of a plan file; that of a network with a million channels is a tenth of it

Limited = Literal["pruning_ratio", "params", "macs", "size_bytes", "latency_ps"]


def _printable(text: str) -> str:
    if not text.isprintable():  # a plan may come from anywhere, and its words go to terminals
        raise ValueError("control characters are not allowed")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class PlannedGroup(BaseModel):
    """One channel group: its size in the original, and the indices that stay, strictly increasing and at least one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_printable)]
    size: Annotated[int, Field(ge=1, le=2**24)]
    keep: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=2**24)]

    @model_validator(mode="after")
    def _indices_fit(self) -> Self:
        if not all(map(lt, self.keep, self.keep[1:])):
            raise ValueError(f"the kept indices of {self.name!r} are not strictly increasing")
        if self.keep[-1] >= self.size:
            raise ValueError(f"{self.name!r} keeps index {self.keep[-1]}, but has only {self.size} channels")
        return self


class PruningPlan(BaseModel):
    """Which channels stay, why these, and what the network costs before and after.

    Groups that a plan does not name stay whole. `budget` holds what was asked for (fractions of the dense cost or
    absolute numbers, `pruning_ratio` a fraction removed), `notes` what the user should know about how it was met.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Literal[1] = FORMAT_VERSION
    criterion: Text = ""
    budget: dict[Limited, Count | Fraction] = {}
    before: Cost
    after: Cost
    groups: tuple[PlannedGroup, ...]
    notes: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for name, times in Counter(group.name for group in self.groups).items():
            if times > 1:
                raise ValueError(f"the group {name!r} is there {times} times")
        return self

    @property
    def removed(self) -> int:
        """Number of channels that go."""
        return sum(group.size - len(group.keep) for group in self.groups)

    def keep_array(self, graph: ChannelGraph) -> Keep:
        """Return the plan as flags over the graph's channels, (channel_count + 1,), True = keep.

        Raises:
            PlanError: a group of the plan is not in the graph, or has another size there.
        """
        keep, by_name = graph.keep_all(), {group.name: group for group in graph.groups}
        _check_groups(self, {name: group.size for name, group in by_name.items()}, "this network")
        for planned in self.groups:
            group = by_name[planned.name]
            kept = np.zeros(group.size, np.bool_)
            kept[list(planned.keep)] = True
            _check_pieces(group, kept)
            keep[group.channels] = kept
        return keep

    def compose(self, later: PruningPlan) -> PruningPlan:
        """Join two rounds: `later` was made for the network that this plan leaves; the result is for the original.

        The criterion, the notes and the budget (as absolute numbers) are the later round's. Not for a network that
        moves its channels about, as a shuffle does: the smaller one numbers them in an order of its own.

        Raises:
            PlanError: `later` does not fit the network that this plan leaves.
        """
        _check_groups(later, {group.name: len(group.keep) for group in self.groups}, "the network that the plan leaves")
        chosen = {group.name: group.keep for group in later.groups}
        groups = tuple(
            PlannedGroup(
                name=group.name,
                size=group.size,
                keep=tuple(group.keep[i] for i in chosen[group.name]) if group.name in chosen else group.keep,
            )
            for group in self.groups
        )
        return later.model_copy(
            update={"groups": groups, "before": self.before, "budget": _absolute(later.budget, later.before)}
        )

    def to_json(self) -> str:
        """Write the plan as JSON, a group a line, which `from_json` reads back equal."""
        data = self.model_dump(mode="json")
        groups = ",\n".join(f"  {json.dumps(group)}" for group in data.pop("groups"))
        return json.dumps(data, indent=1).removesuffix("\n}") + f',\n "groups": [\n{groups}\n ]\n}}\n'

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, atomically."""
        atomic_write_text(path, self.to_json())

    @classmethod
    def from_json(cls, source: str | Path) -> PruningPlan:
        """Read a plan from JSON text, or from a file if `source` is a Path or one line that ends in ``.json``.

        Raises:
            FileFormatError: there is no such file, or it holds no valid plan; the message says where it is wrong.
        """
        is_path = isinstance(source, Path) or (source.endswith(".json") and "\n" not in source)
        what = f"the plan {source}" if is_path else "the plan"
        data = read_bytes(source, "plan") if is_path else str(source).encode(errors="surrogatepass")
        if len(data) > _MAX_BYTES:
            raise FileFormatError(f"{what} has {format_bytes(len(data))}; no plan is larger than 64 MB")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
        where = ".".join(str(part)[:60] for part in problems[0]["loc"])
        message = problems[0]["msg"].removeprefix("Value error, ")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise FileFormatError(f"{what} is not a valid pruning plan: {where + ': ' if where else ''}{message}{more}")

    def summary(self) -> str:
        """Return the plan as readable text: the costs before and after, the widths, the notes."""
        rows = [*_cost_rows(self), ("", "", "", ""), *_group_rows(self)]
        sizes = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{name:<{sizes[0]}}  {before:>{sizes[1]}} → {after:>{sizes[2]}}  {share:>{sizes[3]}}" if name else ""
            for name, before, after, share in rows
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text as Plain

        title = "Pruning plan" + (f" by {self.criterion}" if self.criterion else "")
        table = Table("", "before", "after", "kept", title=Plain(title), title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for rows in (_cost_rows(self), _group_rows(self)):
            for row in rows:
                table.add_row(*(Plain(cell) for cell in row), end_section=row == rows[-1])
        return Group(table, *(Plain(f"note: {note}") for note in self.notes))


def plan_from_keep(
    graph: ChannelGraph,
    keep: Keep,
    *,
    criterion: str = "",
    budget: Mapping[str, float] | None = None,
    header_bytes: int = 0,
    notes: Sequence[str] = (),
    before: Cost | None = None,
) -> PruningPlan:
    """Build the plan that keeps exactly the channels that `keep` keeps.

    Args:
        graph: the channel graph.
        keep: one flag a channel, (channel_count + 1,), True = keep.
        criterion: the name to record.
        budget: what was asked for, to record.
        header_bytes: what a file takes beside its tensors, for the costs.
        notes: what the user should know.
        before: what the whole network costs, where that is known.

    Raises:
        PlanError: `keep` has the wrong length, or leaves a group without any channel.
    """
    if len(keep) != graph.channel_count + 1:
        raise PlanError(
            f"keep has {len(keep)} flags, but this network's graph needs {graph.channel_count + 1}: one a channel "
            "and a last True; start from graph.keep_all()."
        )
    groups = []
    for group in graph.groups:
        kept = np.flatnonzero(keep[group.channels])
        if not len(kept):
            raise PlanError(f"keep leaves no channel of group {group.name!r}; a layer needs at least one.")
        _check_pieces(group, keep[group.channels])
        groups.append(PlannedGroup(name=group.name, size=group.size, keep=tuple(kept.tolist())))
    return PruningPlan.model_validate(
        {
            "criterion": criterion,
            "budget": dict(budget or {}),
            "before": before or predict_cost(graph, graph.keep_all(), header_bytes=header_bytes),
            "after": predict_cost(graph, keep, header_bytes=header_bytes),
            "groups": tuple(groups),
            "notes": tuple(notes),
        }
    )


def _check_pieces(group: ChannelGroup, kept: npt.NDArray[np.bool_]) -> None:
    """Refuse to keep different numbers in pieces that must stay equal."""
    if not group.allows(kept):
        counts = np.bincount(group.piece_of[kept], minlength=group.counts.shape[1]).tolist()
        near = group.counts[np.abs(group.counts - counts).sum(axis=1).argmin()].tolist()
        raise PlanError(
            f"group {group.name!r} lies in {len(counts)} pieces, and {counts} of their channels are kept; the network "
            f"cuts it by position, so that only some counts go together: the nearest are {near}."
        )


def _check_groups(plan: PruningPlan, sizes: Mapping[str, int], whose: str) -> None:
    for group in plan.groups:
        if group.name not in sizes:
            near = difflib.get_close_matches(group.name, sizes, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise PlanError(f"the plan has a group {group.name!r}, which {whose} lacks{hint}. Was it made for another?")
        if sizes[group.name] != group.size:
            raise PlanError(
                f"the plan's group {group.name!r} has {group.size} channels, and {sizes[group.name]} in {whose}. "
                "A plan fits the network that it was made for; join rounds with first.compose(second)."
            )


def _absolute(budget: Mapping[Limited, int | float], dense: Cost) -> dict[Limited, int | float]:
    """Turn fractions of the dense cost into numbers, which still hold for another dense network; drop the ratio."""
    return {
        key: int(value * getattr(dense, key)) if isinstance(value, float) else value
        for key, value in budget.items()
        if key != "pruning_ratio"
    }


def _cost_rows(plan: PruningPlan) -> list[tuple[str, str, str, str]]:
    rows = []
    for key, label, write in (
        ("params", "parameters", format_count),
        ("macs", "MACs", format_count),
        ("size_bytes", "size", format_bytes),
        ("latency_ps", "latency", format_latency),
    ):
        before, after = getattr(plan.before, key), getattr(plan.after, key)
        if key == "latency_ps" and not before:  # nothing was measured
            continue
        rows.append((label, write(before), write(after), f"{after / before:.1%}" if before else ""))
    total = sum(group.size for group in plan.groups)
    kept = total - plan.removed
    return [*rows, ("channels", str(total), str(kept), f"{kept / total:.1%}" if total else "")]


def _group_rows(plan: PruningPlan) -> list[tuple[str, str, str, str]]:
    widths = [(group.name, group.size, len(group.keep)) for group in plan.groups]
    return [(name, str(size), str(kept), f"{kept / size:.1%}") for name, size, kept in widths]
