"""What outlives a sweep's folder: a small file for each finished cell, and the dense networks that cells start from."""

from __future__ import annotations

from prunus.config import MAY_CHANGE
from prunus.errors import RunError
from prunus.files import atomic_write_json
from prunus.report import read_run
from prunus.sweep.cells import DENSE, DENSE_FILES, Job, SweepFolder, kept_files, share
from prunus.sweep.results import row_of

_SEARCH = (
    "epoch",
    "val_accuracy",
    "macs",
    "trained_macs",
    "channels",
    "kept_channels",
    "removed_channels",
    "returned_channels",
    "returned_channels_ever",
    "kept_once_masked",
    "jaccard_overlap",
)
"""What is kept of an epoch of a search; the groups one by one would be many times as much."""


def make_kept(folder: SweepFolder) -> None:
    """Make the folder that is kept, if there is to be one, so that hours of training do not end at its door.

    Raises:
        RunError: it cannot be made.
    """
    if folder.kept is None:
        return
    try:
        (folder.kept / DENSE).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder.kept} to keep results in: {error.strerror or error}") from error


def keep(folder: SweepFolder, job: Job) -> None:
    """Copy what a finished job is for into the folder that `make_kept` made, where it is not there yet.

    A cell's file has its row of the table, its whole configuration, the summary of its run, the seconds that each
    stage of training took, and how a search in training went, epoch by epoch.

    Raises:
        RunError: the folder cannot be written.
    """
    if folder.kept is None or folder.is_kept(job) or not folder.is_here(job):
        return
    place, targets = folder.run(job.kind, job.name), [folder.kept / name for name in kept_files(job)]
    if job.kind == "dense":
        for name, target in zip(DENSE_FILES, targets, strict=True):
            share(place / name, target)
        return
    run = read_run(place)
    row = row_of(folder, job).model_dump(mode="json", exclude={"run", "front"})
    found = {
        "row": row,
        "config": job.config.model_dump(mode="json", exclude=set(MAY_CHANGE)),
        "summary": run.summary.model_dump(mode="json"),
        "seconds": {stage: round(sum(epoch["seconds"] for epoch in epochs), 1) for stage, epochs in run.stages.items()},
        "search": [{key: epoch[key] for key in _SEARCH if key in epoch} for epoch in run.stages.get("search", [])],
    }
    try:
        atomic_write_json(targets[0], found)
    except OSError as error:
        raise RunError(f"cannot write {targets[0]}: {error.strerror or error}") from error
