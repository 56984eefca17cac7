"""What the page says of one run, in words and tables; the charts are in `figures` and `fronts`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.report import numbers
from prunus.report.comparison import compare, int8_text
from prunus.report.figures import stage_name
from prunus.report.folder import Bench, RunFolder
from prunus.report.network_section import network_section
from prunus.report.outcome import changed_images, worst_classes
from prunus.report.trial_figures import trials_words


def said_of(run: RunFolder) -> dict[str, Any]:
    """Return what the template of one run needs beside its charts."""
    return {
        "summary": run.summary,
        "title": f"{run.summary.model} on {run.summary.data}",
        "rows": compare(run.summary),
        "stages": stages_table(run.stages),
        "removals": _removals(run),
        "int8": int8_text(run.summary),
        "searched": _searched(run),
        "trials": "" if run.trials is None else trials_words(run.trials),
        "notes": [str(note) for note in run.plan.get("notes") or ()],
        "passed": run.verification.get("passed") is True,
        "verification": _proof(run.verification),
        "latency": _latency(run.summary.latency),
        "bench": _bench(run.bench),
        "command": command_of(run.environment, run.path),
        "environment": {key: _plain(value) for key, value in run.environment.items()},
        "config_text": run.config_text,
        "path": str(run.path),
        "network": None if run.details is None else network_section(run.details),
        "worst": [] if run.details is None else worst_classes(run.details.test),
        "changed": None if run.details is None else changed_images(run.details.test),
        "has_details": run.details is not None,
    }


def stages_table(stages: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
    """Put every stage in a row: epochs, last and best validation accuracy, and how long it took."""
    table = []
    for stage, rows in stages.items():
        accuracies = [float(row["val_accuracy"]) for row in rows if row.get("val_accuracy") is not None]
        seconds = sum(float(row.get("seconds") or 0.0) for row in rows)
        last = numbers.percent(accuracies[-1]) if accuracies else "–"
        best = numbers.percent(max(accuracies)) if accuracies else "–"
        took = numbers.duration(seconds) if seconds else "–"
        table.append({"name": stage_name(stage), "epochs": str(len(rows)), "last": last, "best": best, "took": took})
    return table


def command_of(environment: dict[str, Any], path: Path) -> str:
    """Return the command that makes the run again: what was typed, or one that reads the folder's configuration."""
    program, _, arguments = str(environment.get("command") or "").partition(" ")
    # What was typed, without the path at which the program happened to lie; a script of the user's own is not that.
    known = {"prunus": "prunus", "__main__.py": "python -m prunus"}.get(Path(program).name)
    return f"{known} {arguments}" if known else f"prunus compress --config {shlex.quote(str(path / 'config.yaml'))}"


def _searched(run: RunFolder) -> str:
    """Say in words how many channels came back in the search."""
    rows = [row for row in run.metrics if row.get("kept_once_masked") is not None]
    if not rows:
        return ""
    last = rows[-1]
    if not last["returned_channels_ever"]:
        return f"None of the {last['channels']} channels came back; the last epoch kept {last['kept_channels']}"
    return (
        f"Of {last['channels']} channels {last['returned_channels_ever']} came back at some time; the last epoch kept "
        f"{last['kept_channels']}, {last['kept_once_masked'] or 'none'} of which had been masked before"
    )


def _removals(run: RunFolder) -> list[str]:
    """Put every removal in words: "removed 11.64 %, reconstruct 80.02 %"."""
    steps: dict[int, list[str]] = {}
    for row in run.summary.recovery:
        steps.setdefault(row.removal, []).append(f"{row.step} {numbers.percent(row.val_accuracy)}")
    return [", ".join(steps[removal]) for removal in sorted(steps)]


def _proof(verification: dict[str, Any]) -> dict[str, str]:
    """Put the verification in words, without what the page says elsewhere or what is empty."""
    said = {key: value for key, value in verification.items() if key != "passed" and value not in ("", None, [])}
    if isinstance(said.get("rounds"), list):
        said["rounds"] = f"{len(said['rounds'])}, each compared; these are the last one's figures"
    return {
        key.replace("_", " "): f"{value:.2g}" if isinstance(value, float) else _plain(value)
        for key, value in said.items()
    }


def _latency(measured: dict[str, Any]) -> str:
    """Say how latency was measured, as far as the run folder tells."""
    one = next((value for value in measured.values() if isinstance(value, dict)), measured)
    known = {key: one.get(key, measured.get(key)) for key in ("runs", "batch", "threads", "runtime", "processor")}
    parts = [
        f"median of {known['runs']} calls" if known["runs"] else "median",
        f"batch {known['batch']}" if known["batch"] else "batch 1",
        f"{known['threads']} thread{'s' if known['threads'] != 1 else ''}" if known["threads"] else "",
        str(known["runtime"] or ""),
        str(known["processor"] or ""),
    ]
    return ", ".join(part for part in parts if part)


def _bench(rows: tuple[Bench, ...]) -> dict[str, Any] | None:
    """Put what `prunus bench` measured in a table; None where it was not run."""
    if not rows:
        return None
    first = rows[0]
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    return {
        "how": f"Median of {first.runs} calls, batch {first.batch}, {threads}, {first.processor}",
        "rows": [
            {
                "name": row.name,
                "median": numbers.milliseconds(row.median_ms),
                "spread": f"{numbers.three_digits(row.p10_ms)} – {numbers.milliseconds(row.p90_ms)}",
                "faster": f"{row.speedup:.2f}×",
                "fewer": "–" if row.macs_reduction is None else f"{row.macs_reduction:.2f}×",
                "size": numbers.size(row.size_bytes),
                "runtime": row.runtime + ("" if row.precision == "float32" else f", {row.precision}"),
            }
            for row in rows
        ],
    }


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(entry) for entry in value)
    return "–" if value is None else str(value)
