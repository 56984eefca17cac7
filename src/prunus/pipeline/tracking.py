"""A run's metrics for TensorBoard, or for any other tracker that accelerate knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prunus.config import RunConfig
from prunus.errors import ConfigError
from prunus.pipeline.run_folder import RunFolder

Track = Callable[[Mapping[str, Any]], None]  # takes an epoch's row of metrics

_PACKAGES = {"comet_ml": "comet-ml"}  # where pip's name is another than the tracker's


def no_track(row: Mapping[str, Any]) -> None:
    """Show nothing."""


@contextmanager
def open_tracker(config: RunConfig, folder: RunFolder) -> Iterator[Track]:
    """Open the tracker that `--tracker` names, for as long as the block lasts.

    Epochs are counted over all stages; one that the run folder had before, of a run that goes on, is left out.
    TensorBoard's files lie in the run folder; where others keep theirs is their own matter.

    Raises:
        ConfigError: accelerate or the tracker's package is missing, or accelerate knows no tracker of that name.
    """
    if config.tracker is None:
        yield no_track
        return
    known = [(row["stage"], row["epoch"]) for row in folder.read_metrics()]
    tracker = _start(config.tracker, folder)
    if not known:
        told = config.model_dump(mode="json")
        tracker.store_init_configuration({key: value for key, value in told.items() if value is not None})

    def track(row: Mapping[str, Any]) -> None:
        name = (row["stage"], row["epoch"])
        if name in known:
            return
        known.append(name)
        tracker.log({f"{row['stage']}/{key}": value for key, value in _numbers(row).items()}, step=len(known))

    try:
        yield track
    finally:
        tracker.finish()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    plain = {key: value for key, value in row.items() if type(value) in (int, float)}
    return {key: float(value) for key, value in plain.items() if key not in ("epoch", "round")}


def _start(name: str, folder: RunFolder) -> Any:
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    except ImportError as error:
        raise ConfigError(f"--tracker {name} needs accelerate: pip install 'prunus[trackers]'") from error
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"--tracker {name}: accelerate knows {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        tracker = kind(name, logging_dir=str(folder.path)) if kind.requires_logging_directory else kind("prunus")
        tracker.start()
    except ImportError as error:
        raise ConfigError(f"--tracker {name} needs its package: pip install {_PACKAGES.get(name, name)}") from error
    return tracker
