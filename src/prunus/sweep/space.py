"""The `search` of a sweep.yaml, checked: what Optuna varies, how often, and what for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prunus.config.fields import Whole, flag
from prunus.config.messages import explain

OBJECTIVES = {"accuracy": "maximize", "macs": "minimize", "size_bytes": "minimize", "params": "minimize"}
"""What a search may be for; accuracy is that on the held-out images."""

_MOST_CORNERS = 512


class SearchFile(BaseModel):
    """The keys of `search`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: dict[str, Any] = flag(..., "", "", "What varies.", "{macs: {low: 0.2, high: 0.6}}")
    trials: Whole = flag(20, "", "", "Cells in all.", "20", ge=1, le=10_000)
    objectives: list[str] = flag(["accuracy", "macs"], "", "", "What for.", "[accuracy, macs]", min_length=1)
    seed: Whole = flag(0, "", "", "Seed of the search.", "0", ge=0, lt=2**31)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole where both are and the step is."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the numbers are integers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)


@dataclass(frozen=True)
class SearchPlan:
    """A search that can start."""

    space: Mapping[str, tuple[Any, ...] | Range]
    trials: int
    objectives: tuple[str, ...]
    seed: int

    def corners(self) -> Iterator[dict[str, Any]]:
        """Give settings at the ends of all ranges and with all choices, some hundred at most: to be checked."""
        ends = [(values.low, values.high) if isinstance(values, Range) else values for values in self.space.values()]
        for values in itertools.islice(itertools.product(*ends), _MOST_CORNERS):
            yield dict(zip(self.space, values, strict=True))


def read_search(given: Mapping[str, Any], where: str, problems: list[str]) -> SearchPlan | None:
    """Check the mapping under `search`; what is wrong is added to the problems."""
    origins = dict.fromkeys(given, where)
    try:
        file = SearchFile.model_validate(dict(given))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "missing":
                problems.append(
                    f"{where}: {detail['loc'][0]} is missing; type e.g. space: {{macs: {{low: 0.2, high: 0.6}}}}"
                )
            else:
                problems += explain(detail, SearchFile.model_fields, origins)
        return None
    before = len(problems)
    for name in file.objectives:
        if name not in OBJECTIVES:
            problems.append(f"{where}: objectives: {name!r} is none of {', '.join(OBJECTIVES)}")
    if not file.space:
        problems.append(f"{where}: space is empty; type e.g. space: {{macs: {{low: 0.2, high: 0.6}}}}")
    space = {key: _values(key, value, where, problems) for key, value in file.space.items()}
    if len(problems) > before:
        return None
    return SearchPlan(space, file.trials, tuple(dict.fromkeys(file.objectives)), file.seed)


def _values(key: str, value: object, where: str, problems: list[str]) -> tuple[Any, ...] | Range:
    """Read choices, or a range."""
    if isinstance(value, list) and value and all(isinstance(one, str | int | float | None) for one in value):
        return tuple(value)
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= {"low", "high", "log", "step"}:
        problems.append(
            f"{where}: {key} is neither a list such as [a, b] nor a range such as {{low: 0.2, high: 0.6, log: true}}"
        )
        return ()
    numbers = [value[name] for name in ("low", "high", "step") if value.get(name) is not None]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        problems.append(f"{where}: {key}: low, high and step are numbers, such as {{low: 0.2, high: 0.6}}")
        return ()
    found = Range(value["low"], value["high"], bool(value.get("log", False)), value.get("step"))
    if not found.low < found.high:
        problems.append(f"{where}: {key}: low {found.low:g} is not below high {found.high:g}")
    elif found.log and (found.low <= 0 or found.step is not None):
        problems.append(f"{where}: {key}: with log, low is above 0 and there is no step")
    elif found.step is not None and found.step <= 0:
        problems.append(f"{where}: {key}: step {found.step:g} is not above 0")
    return found
