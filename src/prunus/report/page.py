"""The page of one run, or of several compared: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import functools
import gzip
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from prunus.files import atomic_write_text
from prunus.report import numbers
from prunus.report.figures import accuracy_chart, loss_chart, sparsity_chart, widths_chart
from prunus.report.folder import RunFolder, read_run
from prunus.report.fronts import colour_of, front_chart, shares_chart, together_chart
from prunus.report.outcome import confusion_chart
from prunus.report.search_figures import groups_chart, search_chart
from prunus.report.sections import said_of
from prunus.report.trial_figures import trials_chart

PAGE = "report.html"


def write_report(runs: Path | str | Sequence[Path | str], path: Path | str | None = None) -> Path:
    """Write the page of finished run folders, from their files alone, and return its path.

    Args:
        runs: one run folder, or several that are compared.
        path: where the page goes; by default report.html in the folder of the run, or for several in this folder.

    Raises:
        FileFormatError: a folder is no finished run; the message names what is missing or does not fit.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    page = place_of(folders, path)
    atomic_write_text(page, render([read_run(folder) for folder in folders]))
    return page


def place_of(folders: Sequence[Path], path: Path | str | None) -> Path:
    """Say where the page of run folders goes."""
    return Path(path) if path is not None else folders[0] / PAGE if len(folders) == 1 else Path(PAGE)


def render(runs: Sequence[RunFolder]) -> str:
    """Render the page: HTML with its style, its script and Plotly in it."""
    named = dict(zip(names_of([run.path for run in runs]), runs, strict=True))
    alone = len(runs) == 1
    charts = _together(named)
    views = []
    for number, (name, run) in enumerate(named.items()):
        prefix = "" if alone else f"run{number}-"
        charts |= {f"{prefix}{key}": chart for key, chart in _charts(run).items()}
        views.append({"name": name, "prefix": prefix, "colour": colour_of(number, len(runs)), **said_of(run)})
    return fill(
        "page.html.jinja",
        styles=("page", "network", "explore", "report"),
        scripts=("walk", "charts", "report"),
        charts=charts,
        title=views[0]["title"] if alone else f"{len(runs)} runs compared",
        runs=views,
        alike=len({(run.summary.data) for run in runs}) == 1,
    )


def fill(
    template: str, *, styles: Sequence[str], scripts: Sequence[str], charts: Mapping[str, Any], **values: Any
) -> str:
    """Fill a template of the assets, with styles, scripts, charts and Plotly in the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prunus.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        percent=numbers.percent,
        milliseconds=numbers.milliseconds,
        count=numbers.count,
        size=numbers.size,
        whole_words=whole_words,
    )
    assets = resources.files("prunus.report") / "assets"

    def read(name: str) -> str:
        return (assets / name).read_text("utf-8")

    return environment.get_template(template).render(
        charts=charts,
        style=Markup("\n".join(read(f"{name}.css") for name in styles)),
        script=Markup("\n".join(read(f"{name}.js") for name in scripts)),
        plotly=_packed_plotly(),
        **values,
    )


def whole_words(text: str) -> Markup:
    """Write a command so that its lines end between words, and not after the hyphens of a flag."""
    return Markup(" ").join(Markup('<span class="word">{}</span>').format(word) for word in text.split(" "))


@functools.cache
def _packed_plotly() -> str:
    """Return Plotly's script, compressed and in base64: 1.9 MB of 4.8."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def names_of(folders: Sequence[Path]) -> list[str]:
    """Call every run as its folder is called, with as much of its path as tells it from the others."""
    whole = [folder.resolve() for folder in folders]
    for length in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-length:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(map(str, whole), start=1)]


def _charts(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Draw what there is to draw of one run."""
    makers: dict[str, Callable[[], dict[str, Any] | None]] = {
        "front": lambda: front_chart({run.summary.model: run}),
        "accuracy": lambda: accuracy_chart(run.stages),
        "loss": lambda: loss_chart(run.stages),
        "sparsity": lambda: sparsity_chart(run.stages),
        "search": lambda: search_chart(run.metrics, run.summary.dense.macs),
        "groups": lambda: groups_chart(run.metrics),
        "trials": lambda: None if run.trials is None else trials_chart(run.trials),
        "widths": lambda: widths_chart(run.summary.widths),
        "confusion": lambda: None if run.details is None else confusion_chart(run.details.test),
    }
    drawn = {name: make() for name, make in makers.items()}
    return {name: chart for name, chart in drawn.items() if chart is not None}


def _together(runs: Mapping[str, RunFolder]) -> dict[str, dict[str, Any]]:
    """Draw what several runs have in common."""
    if len(runs) == 1:
        return {}
    drawn = {"front": front_chart(runs), "together": together_chart(runs), "shares": shares_chart(runs)}
    return {name: chart for name, chart in drawn.items() if chart is not None}
