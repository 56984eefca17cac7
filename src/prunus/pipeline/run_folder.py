"""The run folder: its files, who may write them, and what makes a second command go on where the first one stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from prunus.config import RunConfig, load_config
from prunus.errors import ConfigError, FileFormatError, RunError
from prunus.files import TEMPORARY, atomic_write_json, atomic_write_text, read_bytes, read_json

_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """Where every file of one run lies. A stage is finished when its output file is there, whole."""

    path: Path

    @property
    def config(self) -> Path:
        """What the run was told."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, processor and command line."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def dense(self) -> Path:
        """The trained network before anything is removed: output of the dense stage."""
        return self.path / "dense.safetensors"

    @property
    def sparse(self) -> Path:
        """The network after sparse training, where there is one: output of that stage."""
        return self.checkpoints / "sparse.safetensors"

    @property
    def options(self) -> Path:
        """What the criterion's options led to on validation images, where they were chosen so."""
        return self.path / "options.json"

    @property
    def branches(self) -> Path:
        """Which residual branches were dropped, and what their loss did to the outputs."""
        return self.path / "branches.json"

    @property
    def plan(self) -> Path:
        """Which channels stay, by the dense network's indices."""
        return self.path / "plan.json"

    @property
    def width_search(self) -> Path:
        """Every network that a search of widths measured; it goes on from here."""
        return self.path / "width_search.json"

    @property
    def latency(self) -> Path:
        """What layers take in a runtime, where the budget is one of latency."""
        return self.path / "latency.json"

    @property
    def verification(self) -> Path:
        """What the comparison with the silenced original found."""
        return self.path / "verification.json"

    @property
    def recovery(self) -> Path:
        """Accuracy on the held-out images right after every removal, and after every step of the recovery."""
        return self.path / "recovery.json"

    @property
    def scores(self) -> Path:
        """Every channel's score when channels were chosen for the last time."""
        return self.path / "scores.json"

    @property
    def details(self) -> Path:
        """What the page shows beside the summary: the network, and what changed on the test images."""
        return self.path / "details.json"

    @property
    def checkpoints(self) -> Path:
        """Unfinished epochs, and networks between two stages."""
        return self.path / "checkpoints"

    @property
    def removed(self) -> Path:
        """The small network before its fine-tuning: output of the search stage."""
        return self.checkpoints / "removed.safetensors"

    @property
    def shared(self) -> Path:
        """The network that several processes begin to train."""
        return self.checkpoints / "shared.safetensors"

    def recovered(self, number: int) -> Path:
        """Say where the network of a removal, from 1, lies after the steps of its recovery."""
        return self.checkpoints / f"recovered-{number}.ckpt.safetensors"

    @property
    def model(self) -> Path:
        """The finished small network: output of the fine-tuning."""
        return self.path / "model.safetensors"

    @property
    def int8(self) -> Path:
        """The small network with 8-bit integers, where that was asked for."""
        return self.path / "model.int8.onnx"

    @property
    def int8_network(self) -> Path:
        """The float32 weights that it was made of, where the network was trained for 8-bit integers."""
        return self.path / "model.int8.safetensors"

    @property
    def int8_record(self) -> Path:
        """What 8-bit integers cost on the held-out images: output of that stage."""
        return self.path / "int8.json"

    @property
    def summary(self) -> Path:
        """Accuracy, costs and latency, dense beside pruned: written when all else is done."""
        return self.path / "summary.json"

    @property
    def bench(self) -> Path:
        """Latency in several runtimes, where `prunus bench` measured it."""
        return self.path / "bench.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    def files(self) -> tuple[Path, ...]:
        """Return every file that a run may leave in its folder, checkpoints included."""
        own = (
            self.config,
            self.environment,
            self.metrics,
            self.dense,
            self.options,
            self.branches,
            self.plan,
            self.width_search,
            self.latency,
            self.verification,
            self.recovery,
            self.scores,
            self.model,
            self.int8,
            self.int8_network,
            self.int8_record,
            self.details,
            self.summary,
            self.bench,
            self.report,
        )
        return (*own, *sorted(self.checkpoints.glob("*.safetensors")))

    def leftovers(self) -> tuple[Path, ...]:
        """Return what a killed process was writing: never whole, and never looked at."""
        return tuple(file for place in (self.path, self.checkpoints) for file in place.glob(TEMPORARY))

    def has_results(self) -> bool:
        """Say whether there is anything to go on from, and to lose: an epoch or a network."""
        return self.dense.exists() or bool(self.read_metrics()) or any(self.checkpoints.glob("*.safetensors"))

    def drop_checkpoint(self, stage: str) -> None:
        """Delete the unfinished epochs of a stage that is finished; `stage` may have a star."""
        for file in self.checkpoints.glob(f"{stage}.ckpt*.safetensors"):
            file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what was only there to go on from, once the run is finished."""
        for file in self.checkpoints.glob("*.safetensors"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or with files of somebody else's
            self.checkpoints.rmdir()

    def record(self, row: Mapping[str, Any]) -> None:
        """Add one epoch to the metrics; rows of its stage from this epoch on, left by a killed run, give way."""
        earlier = [old for old in self.read_metrics() if old["stage"] != row["stage"] or old["epoch"] < row["epoch"]]
        self._write_metrics([*earlier, row])

    def read_branches(self) -> list[dict[str, Any]]:
        """Read the branches that were dropped, in their order; none where none are, or not yet."""
        if not self.branches.exists():
            return []
        found = read_json(self.branches, "record of branches")
        rows = found.get("branches") if isinstance(found, dict) else None
        keys = {"name", "parameters", "means"}
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= keys for row in rows):
            raise FileFormatError(f"the record of branches {self.branches} lacks something; delete it to choose again")
        return rows

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the epochs recorded so far; FileFormatError where a line is none of ours."""
        if not self.metrics.exists():
            return []
        rows = []
        for number, line in enumerate(read_bytes(self.metrics, "metrics file").splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise FileFormatError(
                    f"the metrics file {self.metrics}, line {number}, is not JSON: {error}"
                ) from error
            if (
                not isinstance(row, dict)
                or not isinstance(row.get("stage"), str)
                or not isinstance(row.get("epoch"), int)
            ):
                raise FileFormatError(f"the metrics file {self.metrics}, line {number}, has no stage and epoch")
            rows.append(row)
        return rows

    def _write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        atomic_write_text(self.metrics, text)


@contextlib.contextmanager
def open_run(config: RunConfig, environment: Mapping[str, Any], *, fresh: bool = False) -> Iterator[RunFolder]:
    """Take a run's folder for this process: make it, or check that it belongs to the same run.

    `fresh` deletes an earlier run's files first, and nothing else in the folder.

    Raises:
        RunError: another process works in it, or it belongs to a run that was told otherwise; the message lists the
            differences and says what to type.
    """
    folder = RunFolder(config.run_dir)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the run folder {folder.path}: {error.strerror}; choose another with --out"
        ) from error
    with _locked(folder.path):
        for file in folder.leftovers():
            file.unlink(missing_ok=True)
        if fresh:
            for file in folder.files():
                file.unlink(missing_ok=True)
        if folder.config.exists():
            _agree(folder, config)
        else:
            _refuse_strays(folder)
            atomic_write_text(folder.config, config.to_yaml())
        if not folder.metrics.exists():
            atomic_write_text(folder.metrics, "")  # a run from a checkpoint may have no epoch at all
        if not folder.summary.exists():
            atomic_write_json(folder.environment, dict(environment))
        yield folder


def _agree(folder: RunFolder, config: RunConfig) -> None:
    """Refuse to go on with another run's folder."""
    try:
        found = load_config(folder.config)
    except (ConfigError, FileFormatError) as error:
        raise RunError(
            f"the run folder {folder.path} has a config.yaml that is not one of this Prunus: {error}\n"
            f"Choose another folder with --out, or start over with --fresh."
        ) from error
    differences = config.differences(found)
    if differences and not folder.has_results():
        atomic_write_text(folder.config, config.to_yaml())  # the first try ended with an error, and this is the second
        folder.latency.unlink(missing_ok=True)  # of another network, perhaps, or another runtime
    elif differences:
        lines = "\n".join(f"  - {line}" for line in differences)
        raise RunError(
            f"the run folder {folder.path} belongs to a run with other settings:\n{lines}\n"
            f"Type the same settings to go on with it, --out ANOTHER for a new run beside it, "
            f"or --fresh to delete it and start over."
        )


def _refuse_strays(folder: RunFolder) -> None:
    strays = [file.name for file in folder.files() if file.exists()]
    if strays:
        raise RunError(
            f"the folder {folder.path} holds {', '.join(strays)} but no config.yaml, so it is no run that could go on. "
            f"Choose another folder with --out, or delete these files with --fresh."
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system drops when the process ends, however it ends."""
    with (path / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"the run folder {path} is in use by {_holder(file)}. Wait for it to end, or choose another with --out."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    file.seek(0)
    pid = file.read(32).strip()
    return f"process {pid}" if pid.isdigit() else "another process"
