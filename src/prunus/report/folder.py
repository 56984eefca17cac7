"""What a run folder holds, checked: the only place that knows the names of its files and keys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunus.errors import FileFormatError
from prunus.files import read_bytes, read_json


class Figures(BaseModel):
    """What a network achieves and costs: accuracy in [0, 1], counts for one image, bytes of the file, median ms.

    A dense network that was never trained, since the search began from scratch, has no accuracy.
    """

    model_config = ConfigDict(frozen=True)

    test_accuracy: float | None = Field(ge=0, le=1)
    params: int = Field(ge=1)
    macs: int = Field(ge=1)
    size_bytes: int = Field(ge=1)
    latency_ms: float | None = Field(default=None, gt=0)


class Width(BaseModel):
    """The output channels of one convolution before and after."""

    model_config = ConfigDict(frozen=True)

    layer: str
    before: int = Field(ge=1)
    after: int = Field(ge=0)


class Recovered(BaseModel):
    """The accuracy in [0, 1] on held-out images right after a removal, from 1, or after one of the steps behind it."""

    model_config = ConfigDict(frozen=True)

    removal: int = Field(ge=1)
    step: str
    val_accuracy: float = Field(ge=0, le=1)


class Summary(BaseModel):
    """summary.json: what went in, and the dense network beside the pruned one."""

    model_config = ConfigDict(frozen=True)

    data: str
    model: str
    method: str
    budget: dict[str, Any] | str
    date: str
    commit: str | None = None
    device: str
    seed: int
    epochs: dict[str, int]
    recovery: tuple[Recovered, ...] = ()
    dense: Figures
    pruned: Figures
    latency: dict[str, Any] = {}
    files: dict[str, Any] = {}
    widths: tuple[Width, ...] = ()
    options: dict[str, Any] = {}

    @property
    def gained(self) -> float | None:
        """The pruned network's accuracy less the dense one's; None where no dense network was trained."""
        before, after = self.dense.test_accuracy, self.pruned.test_accuracy
        return None if before is None or after is None else after - before

    @property
    def budget_text(self) -> str:
        """The budget as one would say it: "size 0.64MB, macs 0.5"."""
        if isinstance(self.budget, str):
            return self.budget
        given = {key: value for key, value in self.budget.items() if value is not None}
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in given.items())


@dataclass(frozen=True)
class RunFolder:
    """A finished run: its summary, one dictionary an epoch, and the texts and objects beside them."""

    path: Path
    summary: Summary
    metrics: tuple[dict[str, Any], ...]
    plan: dict[str, Any]
    verification: dict[str, Any]
    environment: dict[str, Any]
    config_text: str

    @property
    def stages(self) -> dict[str, list[dict[str, Any]]]:
        """The epochs of every stage, stages in the order in which they began; an epoch run again counts once."""
        stages: dict[str, dict[int, dict[str, Any]]] = {}
        for row in self.metrics:
            stages.setdefault(str(row["stage"]), {})[int(row["epoch"])] = row
        return {stage: [rows[epoch] for epoch in sorted(rows)] for stage, rows in stages.items()}


def read_run(path: Path | str) -> RunFolder:
    """Read a finished run folder; FileFormatError names the file that is missing, cut short or of another shape."""
    path = Path(path)
    return RunFolder(
        path=path,
        summary=read_summary(path / "summary.json"),
        metrics=tuple(_json_lines(path / "metrics.jsonl")),
        plan=_mapping(path / "plan.json", "pruning plan"),
        verification=_mapping(path / "verification.json", "verification"),
        environment=_mapping(path / "environment.json", "environment"),
        config_text=_text(path / "config.yaml", "configuration"),
    )


def read_summary(path: Path) -> Summary:
    """Read a summary.json; FileFormatError names what does not fit."""
    raw = read_json(path, "run summary")
    try:
        return Summary.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise FileFormatError(
            f"the run summary {path} does not fit: {place}: {first['msg']}; run the command of that folder again"
        ) from None


def _mapping(path: Path, what: str) -> dict[str, Any]:
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise FileFormatError(f"the {what} {path} holds a {type(value).__name__}, not an object")
    return value


def _text(path: Path, what: str) -> str:
    try:
        return read_bytes(path, what).decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"the {what} {path} is not UTF-8 text (byte {error.start})") from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_text(path, "metrics file").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "stage": str(row["stage"]), "epoch": int(row["epoch"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise FileFormatError(
                f'the metrics file {path}, line {number}, is not an epoch such as {{"stage": "dense", "epoch": 0}}'
            ) from None
    return rows
