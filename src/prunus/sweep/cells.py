"""A cell: one configuration, its name and its run folder; and the dense training that cells share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunus.config import MAY_CHANGE, RunConfig
from prunus.errors import RunError
from prunus.files import atomic_write_text

DENSE_KEYS = (
    "model",
    "data",
    "image_size",
    "seed",
    "split_seed",
    "epochs",
    "batch_size",
    "accumulate",
    "learning_rate",
    "learning_rate_schedule",
    "warmup_epochs",
    "optimizer",
    "weight_decay",
    "label_smoothing",
    "validation",
    "flip",
    "crop_padding",
    "cutout",
    "mixup",
    "ema",
    "precision",
    "sync_batchnorm",
    "skip_bad_images",
)
"""What decides the dense training, beside where it runs: cells that agree in these start from one dense network."""

DENSE = "dense"
"""The folder of dense trainings, in a sweep's folder and in one that is kept."""

DENSE_FILES = ("metrics.jsonl", "dense.safetensors")
"""What a dense training leaves, in the order in which a run writes it."""

_WHOLE = {"macs": 1.0}  # a configuration needs a budget, and the dense network is all of it
_NAME_LENGTH = 80  # characters, before the hash: folders have names of 255 bytes at most


@dataclass(frozen=True)
class Job:
    """One process to run: a cell, or a dense training that cells wait for.

    Attributes:
        name: of its folder, its state and its log; the settings decide it.
        varied: what tells it from the other cells, for people.
        needs: the name of the dense training that must be there first.
    """

    kind: Literal["cell", "dense"]
    name: str
    varied: Mapping[str, Any]
    config: RunConfig
    needs: str | None = None


@dataclass(frozen=True)
class SweepFolder:
    """Where everything of a sweep lies.

    Attributes:
        path: the sweep's own folder, with all that its runs left.
        kept: where the results of finished cells, and the dense networks they start from, outlive that folder.
    """

    path: Path
    kept: Path | None = None

    def run(self, kind: str, name: str) -> Path:
        """Say where the run folder of a job is."""
        return self.path / ("cells" if kind == "cell" else DENSE) / name

    def state(self, name: str) -> Path:
        """Say which file tells what became of a job."""
        return self.path / "states" / f"{name}.json"

    def log(self, name: str) -> Path:
        """Say which file has what a job's processes printed."""
        return self.path / "logs" / f"{name}.log"

    def lock(self, name: str) -> Path:
        """Say which file is locked as long as a process works on a job."""
        return self.path / "locks" / name

    @property
    def results(self) -> Path:
        """All cells with their figures."""
        return self.path / "sweep.json"

    @property
    def page(self) -> Path:
        """The page with accuracy against cost."""
        return self.path / "front.html"

    @property
    def study(self) -> Path:
        """Optuna's journal of a search."""
        return self.path / "optuna.log"

    def is_done(self, job: Job) -> bool:
        """Say whether a job has left what it is for, here or among what is kept, whatever its state says."""
        return self.is_here(job) or self.is_kept(job)

    def is_kept(self, job: Job) -> bool:
        """Say whether what a job is for lies in the folder that outlives this one."""
        return self.kept is not None and all((self.kept / name).is_file() for name in kept_files(job))

    def is_here(self, job: Job) -> bool:
        """Say whether the run folder of a job has what it is for."""
        folder = self.run(job.kind, job.name)
        if job.kind == "dense":
            return (folder / "dense.safetensors").is_file()
        return (folder / "summary.json").is_file() and (folder / "report.html").is_file()


def kept_files(job: Job) -> tuple[str, ...]:
    """Name the files that are kept of a finished job: a cell's figures, or a dense network and how it was trained."""
    if job.kind == "cell":
        return (f"{job.name}.json",)
    return (f"{DENSE}/{job.name}.jsonl", f"{DENSE}/{job.name}.safetensors")


def make_cell(config: RunConfig, varied: Mapping[str, Any]) -> Job:
    """Name a configuration after what varies and a hash of all that decides its result."""
    words = "_".join(f"{key}-{value}" for key, value in varied.items()) or config.model
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", words)[:_NAME_LENGTH].strip("-_.")
    return Job("cell", f"{plain}-{_hash(config, always={'method'})}", dict(varied), config, dense_name(config))


def dense_name(config: RunConfig) -> str | None:
    """Name the dense training that a configuration starts from; None where it has a checkpoint or needs none."""
    if config.checkpoint is not None or config.from_scratch:
        return None
    return f"dense-{config.model}-{_hash(_dense_config(config))}".replace("/", "-")


def dense_job(cell: Job) -> Job:
    """Make the job that trains what a cell needs."""
    if cell.needs is None:
        raise ValueError(f"{cell.name} needs no dense training")
    return Job("dense", cell.needs, {}, _dense_config(cell.config))


def prepare(job: Job, folder: SweepFolder) -> None:
    """Make a job's run folder: its configuration and, where it shares one, the dense network with its metrics.

    The folder is then that of a run whose dense stage is finished, as if it had trained the network itself.

    Raises:
        RunError: the folder cannot be written.
    """
    place = folder.run(job.kind, job.name)
    if not (place / "config.yaml").exists():
        atomic_write_text(place / "config.yaml", job.config.to_yaml())
    if job.needs is None or (place / "dense.safetensors").exists():
        return
    for source, name in zip(_dense_files(folder, dense_job(job)), DENSE_FILES, strict=True):
        share(source, place / name)


def _dense_files(folder: SweepFolder, dense: Job) -> tuple[Path, ...]:
    """Say where the metrics and the dense network are that cells start from: what is kept comes first."""
    if folder.kept is not None and folder.is_kept(dense):
        return tuple(folder.kept / name for name in kept_files(dense))
    return tuple(folder.run("dense", dense.name) / name for name in DENSE_FILES)


def share(source: Path, target: Path) -> None:
    """Link a file, or copy it where that cannot be; files of a run are replaced, never changed in place."""
    part = target.with_name(f".{target.name}.{'0' * 8}.tmp")
    try:
        part.unlink(missing_ok=True)
        try:
            part.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error


def _dense_config(config: RunConfig) -> RunConfig:
    values = config.model_dump(include=set(DENSE_KEYS))
    where = {key: getattr(config, key) for key in MAY_CHANGE - {"out"}}
    return RunConfig.model_validate(values | where | _WHOLE)


def _hash(config: RunConfig, always: Set[str] = frozenset()) -> str:
    # Without defaults, so that an option that a later version adds leaves the names as they are. What `always` names
    # counts even so: with another default the same name would mean another network.
    values = config.model_dump(mode="json", exclude_defaults=True, exclude={*MAY_CHANGE, "recipe"})
    values |= config.model_dump(mode="json", include=set(always))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
