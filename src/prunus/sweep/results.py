"""What the cells came to: one row each, and which of them no other beats in accuracy and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prunus.errors import FileFormatError
from prunus.files import atomic_write_json, read_json
from prunus.report import RunFolder, read_run
from prunus.sweep.cells import Job, SweepFolder, kept_files
from prunus.sweep.states import State, read_state

COSTS = ("macs", "size_bytes")
"""What accuracy is drawn against."""


class Row(BaseModel):
    """A cell of the table.

    Attributes:
        settings: what tells it from the others.
        run: its run folder; None where that is gone and only its result was kept.
        held_out_accuracy: on the held-out images at the end, in [0, 1]: what cells are chosen by.
        test_accuracy: on the test images; decides nothing.
        front: the costs in whose front it is: no other cell is as accurate for less, or more so for as much.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    settings: dict[str, Any]
    run: str | None = None
    status: str
    attempts: int
    seconds: float
    error: tuple[str, ...] = ()
    held_out_accuracy: float | None = None
    test_accuracy: float | None = None
    macs: int | None = None
    params: int | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    front: tuple[str, ...] = ()


def read_rows(folder: SweepFolder, cells: Sequence[Job]) -> list[Row]:
    """Read the cells' run folders and states, and find the fronts."""
    rows = [row_of(folder, cell) for cell in cells]
    fronts = {cost: _front(rows, cost) for cost in COSTS}
    return [row.model_copy(update={"front": tuple(cost for cost in COSTS if row.name in fronts[cost])}) for row in rows]


def write_results(folder: SweepFolder, rows: Sequence[Row], *, finished: bool) -> dict[str, Any]:
    """Write sweep.json, and return what is in it; `finished` says that no cell is to come."""
    results = {
        "complete": finished and all(row.status == "done" for row in rows),
        "cells": [row.model_dump(mode="json") for row in rows],
        "front": {cost: _front(rows, cost) for cost in COSTS},
    }
    atomic_write_json(folder.results, results)
    return results


def held_out_accuracy(run: RunFolder) -> float | None:
    """Return the accuracy on the held-out images of a run's last epoch of fine-tuning, or right after the removal."""
    finetuned = run.stages.get("finetune")
    if finetuned:
        value = finetuned[-1].get("val_accuracy")
        return None if value is None else float(value)
    return run.summary.recovery[-1].val_accuracy if run.summary.recovery else None


def row_of(folder: SweepFolder, cell: Job) -> Row:
    """Read a cell's run folder and state, or what is kept of it.

    Raises:
        FileFormatError: what is kept is no result of a cell.
    """
    place = folder.run(cell.kind, cell.name)
    if folder.is_kept(cell) and not folder.is_here(cell):
        return _kept_row(folder, cell)
    try:
        state = read_state(folder.state(cell.name))
    except FileFormatError:
        state = State()
    known = {
        "name": cell.name,
        "settings": dict(cell.varied),
        "run": str(place),
        "status": "pending" if state.status == "running" else state.status,
        "attempts": state.attempts,
        "seconds": state.seconds,
        "error": state.error,
    }
    if not folder.is_here(cell):
        return Row.model_validate(known)
    run = read_run(place)
    small = run.summary.pruned
    figures = {
        "status": "done",
        "error": (),
        "held_out_accuracy": held_out_accuracy(run),
        "test_accuracy": small.test_accuracy,
        "macs": small.macs,
        "params": small.params,
        "size_bytes": small.size_bytes,
        "latency_ms": small.latency_ms,
    }
    return Row.model_validate(known | figures)


def _kept_row(folder: SweepFolder, cell: Job) -> Row:
    (name,) = kept_files(cell)
    path = (folder.kept or folder.path) / name
    found: Any = read_json(path, "result of a cell")
    try:
        return Row.model_validate({**found["row"], "settings": dict(cell.varied)})
    except (KeyError, TypeError, ValidationError):
        raise FileFormatError(
            f"{path} is not the result of a cell; delete it, and the same command runs the cell again"
        ) from None


def _front(rows: Sequence[Row], cost: str) -> list[str]:
    """Name the rows that no other beats, cheapest first; of equals the first one."""
    measured = [row for row in rows if row.held_out_accuracy is not None and getattr(row, cost) is not None]
    names, best = [], -1.0
    for row in sorted(measured, key=lambda row: (getattr(row, cost), -(row.held_out_accuracy or 0.0))):
        if row.held_out_accuracy is not None and row.held_out_accuracy > best:
            best = row.held_out_accuracy
            names.append(row.name)
    return names
