"""The page of a run: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from prunus.files import atomic_write_text
from prunus.report import numbers
from prunus.report.comparison import compare
from prunus.report.figures import (
    accuracy_chart,
    loss_chart,
    search_chart,
    sparsity_chart,
    stage_name,
    widths_chart,
)
from prunus.report.folder import RunFolder, read_run

PAGE = "report.html"


def write_report(run_dir: Path | str) -> Path:
    """Write report.html into a finished run folder, from its files alone, and return its path."""
    run = read_run(run_dir)
    path = run.path / PAGE
    atomic_write_text(path, render(run))
    return path


def render(run: RunFolder) -> str:
    """Render the page: HTML with its style, its script and Plotly in it."""
    assets = resources.files("prunus.report") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(percent=numbers.percent, milliseconds=numbers.milliseconds)
    template = environment.from_string((assets / "page.html.jinja").read_text("utf-8"))
    return template.render(
        summary=run.summary,
        title=f"{run.summary.model} on {run.summary.data}",
        rows=compare(run.summary),
        stages=_stages(run),
        removals=_removals(run),
        charts=_charts(run),
        searched=_searched(run),
        notes=[str(note) for note in run.plan.get("notes") or ()],
        passed=run.verification.get("passed") is True,
        verification=_proof(run.verification),
        latency=_latency(run.summary.latency),
        command=_command(run),
        environment={key: _plain(value) for key, value in run.environment.items()},
        config_text=run.config_text,
        style=Markup((assets / "page.css").read_text("utf-8")),
        script=Markup((assets / "page.js").read_text("utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def _charts(run: RunFolder) -> dict[str, dict[str, Any]]:
    charts: dict[str, dict[str, Any]] = {}
    if run.metrics:
        charts |= {"accuracy": accuracy_chart(run), "loss": loss_chart(run)}
    for name, chart in (("sparsity", sparsity_chart(run)), ("search", search_chart(run))):
        if chart:
            charts[name] = chart
    if run.summary.widths:
        charts |= {"widths": widths_chart(run.summary.widths)}
    return charts


def _searched(run: RunFolder) -> str:
    """Say in words how many channels came back in the search."""
    rows = [row for row in run.metrics if row.get("kept_once_masked") is not None]
    if not rows:
        return ""
    last = rows[-1]
    return (
        f"Of {last['channels']} channels {last['returned_channels_ever']} came back at some time; the last epoch kept "
        f"{last['kept_channels']}, {last['kept_once_masked']} of which had been masked before"
    )


def _stages(run: RunFolder) -> list[dict[str, str]]:
    table = []
    for stage, rows in run.stages.items():
        accuracies = [float(row["val_accuracy"]) for row in rows if row.get("val_accuracy") is not None]
        seconds = sum(float(row.get("seconds") or 0.0) for row in rows)
        last = numbers.percent(accuracies[-1]) if accuracies else "–"
        best = numbers.percent(max(accuracies)) if accuracies else "–"
        took = numbers.duration(seconds) if seconds else "–"
        table.append({"name": stage_name(stage), "epochs": str(len(rows)), "last": last, "best": best, "took": took})
    return table


def _removals(run: RunFolder) -> list[str]:
    """Put every removal in words: "removed 11.64 %, reconstruct 80.02 %"."""
    steps: dict[int, list[str]] = {}
    for row in run.summary.recovery:
        steps.setdefault(row.removal, []).append(f"{row.step} {numbers.percent(row.val_accuracy)}")
    return [", ".join(steps[removal]) for removal in sorted(steps)]


def _proof(verification: dict[str, Any]) -> dict[str, str]:
    """Put the verification in words, without what the page says elsewhere or what is empty."""
    said = {key: value for key, value in verification.items() if key != "passed" and value not in ("", None)}
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


def _command(run: RunFolder) -> str:
    program, _, arguments = str(run.environment.get("command") or "").partition(" ")
    # What was typed, without the path at which the program happened to lie; a script of the user's own is not that.
    known = {"prunus": "prunus", "__main__.py": "python -m prunus"}.get(Path(program).name)
    return f"{known} {arguments}" if known else f"prunus compress --config {shlex.quote(str(run.path / 'config.yaml'))}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(entry) for entry in value)
    return "–" if value is None else str(value)
