"""The page of runs that go on: what they have done so far, rewritten as they do more, until all are finished."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from prunus.errors import FileFormatError, RunError
from prunus.files import atomic_write_text, read_bytes, read_json
from prunus.report import numbers
from prunus.report.figures import accuracy_chart, loss_chart, sparsity_chart, stage_name
from prunus.report.folder import read_metrics, stages_of
from prunus.report.page import fill, names_of, place_of, write_report
from prunus.report.search_figures import groups_chart, search_chart
from prunus.report.sections import command_of, stages_table
from prunus.report.trial_figures import trials_chart
from prunus.report.trials import read_trials

RELOAD = 5  # seconds after which the browser looks again

_WATCHED = ("metrics.jsonl", "width_search.json", "summary.json")
_PLANNED = {"dense": "epochs", "sparse": "sparse_epochs", "search": "search_epochs", "finetune": "finetune_epochs"}


def follow_report(
    runs: Sequence[Path],
    path: Path | None = None,
    *,
    seconds: float = 2.0,
    wait: Callable[[float], None] = time.sleep,
    written: Callable[[Path], None] = lambda page: None,
) -> Path:
    """Write the page of runs again whenever one of them has got further, until all are finished; return its path.

    An open page loads itself again. Once every run has its summary.json, the page is that of `write_report`.

    Args:
        runs: run folders; those that are finished are allowed too.
        path: where the page goes, as in `write_report`.
        seconds: how long to wait between two looks at the folders.
        wait: waits that long.
        written: is told of the page whenever it was written.

    Raises:
        RunError: a folder is that of no run, or the run in it was deleted meanwhile.
    """
    page = place_of(runs, path)
    known: list[tuple[int, int]] | None = None
    while True:
        for run in runs:
            if not (run / "config.yaml").is_file():
                raise RunError(
                    f"there is no run in {run} (no config.yaml): name folders that prunus compress works in."
                )
        now = [_state(run / name) for run in runs for name in _WATCHED]
        if all((run / "summary.json").is_file() for run in runs):
            written(write_report(runs, page))
            return page
        if now != known:
            atomic_write_text(page, render_live(runs))
            known = now
            written(page)
        wait(seconds)


def render_live(runs: Sequence[Path]) -> str:
    """Render the page of runs that go on; it loads itself again every few seconds."""
    charts: dict[str, Any] = {}
    views = []
    for number, (name, run) in enumerate(zip(names_of(runs), runs, strict=True)):
        metrics = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else ()
        stages = stages_of(metrics)
        trials = read_trials(run / "width_search.json")
        prefix = f"run{number}-" if len(runs) > 1 else ""
        # Until something is removed, the network that is trained is the dense one.
        dense = next((row["trained_macs"] for row in metrics if row.get("trained_macs")), None)
        drawn = {
            "accuracy": accuracy_chart(stages),
            "loss": loss_chart(stages),
            "sparsity": sparsity_chart(stages),
            "search": search_chart(metrics, int(dense)) if dense else None,
            "groups": groups_chart(metrics),
            "trials": None if trials is None else trials_chart(trials),
        }
        charts |= {prefix + key: chart for key, chart in drawn.items() if chart is not None}
        views.append(_view(name, prefix, run, stages))
    title = views[0]["title"] if len(views) == 1 else f"{len(views)} runs under way"
    return fill(
        "live.html.jinja",
        styles=("page", "report"),
        scripts=("charts", "live"),
        charts=charts,
        title=title,
        runs=views,
        reload=RELOAD,
        now=datetime.now(UTC).strftime("%H:%M:%S UTC"),
    )


def _view(name: str, prefix: str, run: Path, stages: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    text = read_bytes(run / "config.yaml", "configuration").decode("utf-8", "replace")
    config = _config(text)
    environment: dict[str, Any] = {}
    with contextlib.suppress(FileFormatError):  # the run may be about to write it
        found = read_json(run / "environment.json", "environment")
        environment = found if isinstance(found, dict) else {}
    rows = [row for epochs in stages.values() for row in epochs]
    last = rows[-1] if rows else {}
    return {
        "name": name,
        "prefix": prefix,
        "title": f"{config.get('model', 'a network')} on {config.get('data', 'its data')}",
        "finished": (run / "summary.json").is_file(),
        "stage": stage_name(str(last["stage"])) if last else "before the first epoch",
        "accuracy": numbers.percent(last.get("val_accuracy")),
        "epoch_took": numbers.duration(float(last["seconds"])) if last.get("seconds") else "–",
        "progress": _progress(config, stages),
        "stages": stages_table(stages),
        "command": command_of(environment, run),
        "config_text": text,
    }


def _config(text: str) -> dict[str, Any]:
    """Read a configuration for its numbers; what is none is shown as it is."""
    with contextlib.suppress(yaml.YAMLError):
        found = yaml.safe_load(text)
        if isinstance(found, dict):
            return found
    return {}


def _progress(config: Mapping[str, Any], stages: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Say of every stage how many of its epochs are done; a search may end before all of them.

    A stage that a later one has left without an epoch was not needed.
    """
    rows: list[dict[str, Any]] = []
    for stage, key in _PLANNED.items():
        planned, done = config.get(key), len(stages.get(stage, ()))
        if stage == "search" and config.get("method") != "layer-fusion":
            planned = 0  # it is made of rounds, if it has epochs at all
        most = max(done, planned if isinstance(planned, int) else 0)
        if done:
            rows = [row for row in rows if row["done"]]
        if most:
            rows.append({"name": stage_name(stage), "done": done, "of": most, "percent": f"{100 * done / most:.1f}"})
    return rows


def _state(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written again: its time in ns and its size; zeros where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
