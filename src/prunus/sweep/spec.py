"""sweep.yaml, read and checked as a whole before anything starts."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from prunus.config import RunConfig, judge
from prunus.config.fields import Real, Whole, flag
from prunus.config.messages import explain
from prunus.config.plain_yaml import read_mapping
from prunus.criteria import get_criterion
from prunus.errors import ConfigError
from prunus.models import MODELS
from prunus.sweep.cells import Job, SweepFolder, make_cell
from prunus.sweep.space import SearchPlan, read_search

ExecutorName = Literal["local", "ray"]
_OWN = {"out": "every cell has a folder of its own in the sweep's"}  # keys that a cell may not have, and why
_MOST = 10_000  # cells


class SweepFile(BaseModel):
    """The keys of sweep.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: dict[str, Any] = flag({}, "", "", "Settings of all cells, by RunConfig's keys.", "{model: resnet20}")
    grid: dict[str, Any] | list[dict[str, Any]] | None = flag(
        None, "", "", "Lists of values; every combination is a cell.", "{macs: [0.3, 0.5]}"
    )
    search: dict[str, Any] | None = flag(
        None, "", "", "A search by Optuna in place of a grid.", "{trials: 20, space: {macs: {low: 0.2, high: 0.6}}}"
    )
    executor: ExecutorName = flag("local", "", "", "Where cells run: local or ray.", "local")
    jobs: Whole = flag(1, "", "", "Cells at once.", "2", ge=1, le=1024)
    devices: list[str] = flag([], "", "", "Devices that cells are spread over.", "[cuda:0, cuda:1]")
    retries: Whole = flag(1, "", "", "Further tries of a cell that failed.", "1", ge=0, le=100)
    out: Path | None = flag(None, "", "", "The sweep's folder.", "runs/sweep")
    keep: Path | None = flag(
        None, "", "", "Folder that the results of finished cells are copied into; what is in it is done.", "results"
    )
    skip_missing_data: bool = flag(False, "", "", "Leave out cells whose data set is not here.", "true")
    ray: dict[str, Any] = flag({}, "", "", "What a cell asks of Ray.", "{gpus: 0.25}")


class RayOptions(BaseModel):
    """What a cell asks of a Ray cluster.

    Attributes:
        address: of a running cluster, "auto" for the one that this machine is in, "local" for one of our own.
        cpus: cores a cell, above 0.
        gpus: GPUs a cell, at least 0; with 0.25 four cells share one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = flag("local", "", "", "Of the cluster.", "auto")
    cpus: Real = flag(1.0, "", "", "Cores a cell.", "1", gt=0, le=10_000)
    gpus: Real = flag(0.0, "", "", "GPUs a cell.", "0.25", ge=0, le=10_000)


@dataclass(frozen=True)
class Sweep:
    """A sweep that can start: its cells, or the search that finds them, and how they are run."""

    folder: Path
    base: Mapping[str, Any]
    cells: tuple[Job, ...]
    search: SearchPlan | None
    executor: ExecutorName
    jobs: int
    devices: tuple[str, ...]
    retries: int
    ray: RayOptions
    keep: Path | None = None
    skip_missing_data: bool = False

    @property
    def files(self) -> SweepFolder:
        """Where everything of it lies."""
        return SweepFolder(self.folder, self.keep)

    @property
    def total(self) -> int:
        """How many cells there will be."""
        return len(self.cells) if self.search is None else self.search.trials


def load_sweep(path: Path, flags: Mapping[str, object] | None = None) -> Sweep:
    """Read a sweep's file, with flags (`executor`, `jobs`, `retries`, `out`) over it.

    Raises:
        ConfigError: something is wrong with the file or with a cell; the message lists everything at once.
    """
    values = read_mapping(path)
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    origins = dict.fromkeys(values, str(path)) | dict.fromkeys(given, "")
    try:
        file = SweepFile.model_validate(values | given)
    except ValidationError as error:
        lines = {
            str(detail["loc"][:1]): explain(detail, SweepFile.model_fields, origins)
            for detail in error.errors(include_url=False)
        }
        raise ConfigError(_as_list(path, [line for group in lines.values() for line in group])) from None
    problems: list[str] = []
    cells = _cells(file, str(path), problems) if file.search is None else ()
    search = None if file.search is None else _search(file, str(path), problems)
    ray = _ray(file, str(path), problems)
    if problems:
        raise ConfigError(_as_list(path, list(dict.fromkeys(problems))))
    return Sweep(
        folder=file.out or Path("runs") / path.stem,
        base=file.base,
        cells=cells,
        search=search,
        executor=file.executor,
        jobs=file.jobs,
        devices=tuple(file.devices),
        retries=file.retries,
        ray=ray,
        keep=file.keep,
        skip_missing_data=file.skip_missing_data,
    )


def threads_each(jobs: int) -> int:
    """Share the processor's cores out among so many processes."""
    return max(1, (os.cpu_count() or 1) // jobs)


def _cells(file: SweepFile, path: str, problems: list[str]) -> tuple[Job, ...]:
    problems += _unknown(file.base, f"base (in {path})")
    if file.grid is None:
        problems.append(
            f"there is no grid and no search (in {path}): write e.g. grid: {{macs: [0.3, 0.5], seed: [0, 1]}}"
        )
        return ()
    grids = file.grid if isinstance(file.grid, list) else [file.grid]
    for grid in grids:
        problems += _unknown(grid, f"grid (in {path})")
        problems += [
            f"grid (in {path}): {key} has no values; type e.g. {key}: [{_example(key)}]"
            for key, values in grid.items()
            if values == []
        ]
    if not sum(_size(grid) for grid in grids) <= _MOST:
        problems.append(f"grid (in {path}) has over {_MOST:,} cells: leave values out")
    if problems:
        return ()
    varied = [settings for grid in grids for settings in _combinations(grid)]
    return _judged(file.base, varied, path, problems)


def _search(file: SweepFile, path: str, problems: list[str]) -> SearchPlan | None:
    problems += _unknown(file.base, f"base (in {path})")
    if file.grid is not None:
        problems.append(f"there is a grid and a search (in {path}): keep one of the two")
    plan = read_search(file.search or {}, f"search (in {path})", problems)
    if plan is None:
        return None
    problems += _unknown(plan.space, f"search (in {path})")
    if not problems:
        _judged(file.base, list(plan.corners()), path, problems)
    return plan


def _ray(file: SweepFile, path: str, problems: list[str]) -> RayOptions:
    if file.executor == "ray" and file.devices:
        problems.append(f"devices (in {path}) is for the executor local; under ray type ray: {{gpus: 0.5}}")
    try:
        return RayOptions.model_validate(file.ray)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            problems += explain(detail, RayOptions.model_fields, dict.fromkeys(file.ray, f"ray in {path}"))
        return RayOptions()


def _judged(base: Mapping[str, Any], varied: list[dict[str, Any]], path: str, problems: list[str]) -> tuple[Job, ...]:
    """Make the cells; what is wrong with any of them is said once, with the first that it is true of."""
    cells: dict[str, Job] = {}
    wrong: dict[str, list[str]] = {}
    for settings in varied:
        config, lines = judge({**base, **settings}, dict.fromkeys({**base, **settings}, path))
        if config is not None:
            cell = make_cell(config, settings)
            cells.setdefault(cell.name.rpartition("-")[2], cell)  # the same settings twice are one cell
            lines = _unknown_names(config)
        for line in lines:
            wrong.setdefault(line, []).append(", ".join(f"{key} {value}" for key, value in settings.items()))
    problems += [f"{line}{_where(places, len(varied))}" for line, places in wrong.items()]
    return tuple(cells.values())


def _unknown_names(config: RunConfig) -> list[str]:
    """List what a run would refuse only after its start."""
    lines = []
    if config.model not in MODELS:
        near = difflib.get_close_matches(config.model.lower(), MODELS, n=1, cutoff=0.5)
        lines.append(f"there is no model named {config.model}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        get_criterion(config.criterion_name)
    except ConfigError as error:
        lines.append(str(error).rstrip("."))
    return lines


def _where(places: list[str], total: int) -> str:
    if len(places) == total:
        return ""
    more = f", and {len(places) - 1} more" if len(places) > 1 else ""
    return f" (cell {places[0]}{more})"


def _values(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _size(grid: Mapping[str, Any]) -> int:
    size = 1
    for value in grid.values():
        size *= len(_values(value))
    return size


def _combinations(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(_values(value) for value in grid.values())):
        yield dict(zip(grid, values, strict=True))


def _unknown(settings: Mapping[str, Any], where: str) -> list[str]:
    """List the keys that no cell may have, each with the nearest that it may."""
    lines = []
    for key in settings:
        if key in _OWN:
            lines.append(f"{where}: {key} cannot be set: {_OWN[key]}")
        elif key not in RunConfig.model_fields:
            near = difflib.get_close_matches(key.replace("-", "_"), RunConfig.model_fields, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "; prunus compress --help shows all"
            lines.append(f"{where}: {key} is no option{hint}")
    return lines


def _example(key: str) -> str:
    field = RunConfig.model_fields.get(key)
    return str((field.examples or ["…"])[0]) if field is not None else "…"


def _as_list(path: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"The sweep {path} cannot be used: {problems[0]}."
    return "\n".join([f"The sweep {path} has {len(problems)} errors:", *(f"  - {problem}" for problem in problems)])
