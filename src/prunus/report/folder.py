"""What a run folder holds, checked: the only place that knows the names of its files and keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from prunus.errors import FileFormatError
from prunus.files import read_bytes, read_json
from prunus.report.details import Details, read_details
from prunus.report.trials import WidthTrials, read_trials


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


class HeldOut(BaseModel):
    """Accuracy in [0, 1] on held-out images: in float32, rounded to 8 bits, and trained for that, if it was."""

    model_config = ConfigDict(frozen=True)

    float32: float = Field(ge=0, le=1)
    rounded: float = Field(ge=0, le=1)
    fine_tuned: float | None = Field(default=None, ge=0, le=1)


class Int8(BaseModel):
    """The file with 8-bit integers: accuracy in [0, 1] in its runtime, bytes, which of both it is, and its latency.

    The last is None where latency was not measured in its runtime.
    """

    model_config = ConfigDict(frozen=True)

    test_accuracy: float = Field(ge=0, le=1)
    val_accuracy: HeldOut
    delivered: Literal["rounded", "fine_tuned"]
    size_bytes: int = Field(ge=1)
    latency_ms: float | None = Field(default=None, gt=0)


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
    int8: Int8 | None = None

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


class Bench(BaseModel):
    """One row of bench.json: what a network takes in one runtime, compared with the first there."""

    model_config = ConfigDict(frozen=True)

    name: str
    runtime: str
    precision: str
    median_ms: float = Field(gt=0)
    p10_ms: float = Field(gt=0)
    p90_ms: float = Field(gt=0)
    runs: int
    threads: int
    batch: int
    size_bytes: int
    speedup: float
    macs_reduction: float | None
    processor: str


@dataclass(frozen=True)
class RunFolder:
    """A finished run: its summary, one dictionary an epoch, and the texts and objects beside them.

    `details` are None where an earlier Prunus ran, `bench` is empty where `prunus bench` was not run, and `trials` are
    None where no widths were searched for.
    """

    path: Path
    summary: Summary
    metrics: tuple[dict[str, Any], ...]
    plan: dict[str, Any]
    verification: dict[str, Any]
    environment: dict[str, Any]
    config_text: str
    details: Details | None = None
    bench: tuple[Bench, ...] = ()
    trials: WidthTrials | None = None

    @property
    def stages(self) -> dict[str, list[dict[str, Any]]]:
        """The epochs of every stage, stages in the order in which they began; an epoch run again counts once."""
        return stages_of(self.metrics)


def stages_of(metrics: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Share epochs out to their stages, in the order in which these began; an epoch run again counts once."""
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    for row in metrics:
        stages.setdefault(str(row["stage"]), {})[int(row["epoch"])] = row
    return {stage: [rows[epoch] for epoch in sorted(rows)] for stage, rows in stages.items()}


def read_run(path: Path | str) -> RunFolder:
    """Read a finished run folder; FileFormatError names the file that is missing, cut short or of another shape."""
    path = Path(path)
    return RunFolder(
        path=path,
        summary=read_summary(path / "summary.json"),
        metrics=read_metrics(path / "metrics.jsonl"),
        plan=_mapping(path / "plan.json", "pruning plan"),
        verification=_mapping(path / "verification.json", "verification"),
        environment=_mapping(path / "environment.json", "environment"),
        config_text=_text(path / "config.yaml", "configuration"),
        details=read_details(path / "details.json"),
        bench=read_bench(path / "bench.json"),
        trials=read_trials(path / "width_search.json"),
    )


def read_summary(path: Path) -> Summary:
    """Read a summary.json; FileFormatError names what does not fit."""
    raw = read_json(path, "run summary")
    try:
        return Summary.model_validate(raw)
    except ValidationError as error:
        raise misfit(path, "run summary", "run the command of that folder again", error) from None


def read_bench(path: Path) -> tuple[Bench, ...]:
    """Read what `prunus bench` measured of a run, empty where it was not run; FileFormatError where it does not fit."""
    if not path.exists():
        return ()
    try:
        return TypeAdapter(tuple[Bench, ...]).validate_python(read_json(path, "latency file"))
    except ValidationError as error:
        raise misfit(path, "latency file", "run prunus bench on this folder again", error) from None


def misfit(path: Path, what: str, way_out: str, error: ValidationError) -> FileFormatError:
    """Say which entry of a file does not fit, and how to get a file that does."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    return FileFormatError(f"the {what} {path} does not fit: {place}: {first['msg']}; {way_out}")


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


def read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """Read the epochs of a run; FileFormatError names the line that is none."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(path, "metrics file").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "stage": str(row["stage"]), "epoch": int(row["epoch"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise FileFormatError(
                f'the metrics file {path}, line {number}, is not an epoch such as {{"stage": "dense", "epoch": 0}}'
            ) from None
    return tuple(rows)
