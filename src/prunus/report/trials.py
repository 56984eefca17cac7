"""width_search.json of a run, checked: every network that a search for the widths measured."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunus.errors import FileFormatError
from prunus.files import read_json


class Trial(BaseModel):
    """One network: how many channels each group keeps, its loss and accuracy, and the trial that it was made of."""

    model_config = ConfigDict(frozen=True)

    widths: tuple[int, ...]
    loss: float
    accuracy: float = Field(ge=0, le=1)
    parent: int | None = None


class WidthTrials(BaseModel):
    """The whole file: all networks in their order, and how long they took; groups have no names in older files."""

    model_config = ConfigDict(frozen=True)

    trials: tuple[Trial, ...] = Field(min_length=1)
    groups: tuple[str, ...] = ()
    seconds: float = Field(default=0.0, ge=0)

    @property
    def best(self) -> list[int]:
        """For every trial the number of the best until then, the least loss deciding; among equals the earliest."""
        found: list[int] = []
        for number, trial in enumerate(self.trials):
            better = not found or trial.loss < self.trials[found[-1]].loss
            found.append(number if better else found[-1])
        return found


def read_trials(path: Path) -> WidthTrials | None:
    """Read a width_search.json, None where there is none; FileFormatError names what does not fit."""
    if not path.exists():
        return None
    try:
        found = WidthTrials.model_validate(read_json(path, "state of a width search"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise _misfit(path, f"{place}: {first['msg']}") from None
    count = len(found.groups) or len(found.trials[0].widths)
    for number, trial in enumerate(found.trials):
        if len(trial.widths) != count:
            raise _misfit(path, f"trial {number} has {len(trial.widths)} widths and not {count}")
        if trial.parent is not None and not 0 <= trial.parent < number:
            raise _misfit(path, f"trial {number} was made of one that is not before it")
    return found


def _misfit(path: Path, wrong: str) -> FileFormatError:
    return FileFormatError(
        f"the state of a width search {path} does not fit: {wrong}; delete the file for a page without it"
    )
