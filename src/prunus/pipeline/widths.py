"""A search for the widths within the budget, as part of the search stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from prunus.budget import Budget
from prunus.criteria.registry import Normalize
from prunus.graph.channels import ChannelGraph
from prunus.methods import Choice
from prunus.pipeline.recovering import DONE, repair_of
from prunus.pipeline.run import Run
from prunus.plan import PruningPlan
from prunus.width_search import WidthTrial, search_widths

_GUIDES = 1000  # held-out images at most that a trial is measured on


def searched_plan(run: Run, dense: nn.Module, graph: ChannelGraph, choice: Choice, budget: Budget) -> PruningPlan:
    """Search for `--search-minutes`, from the widths of every normalisation and of the local scope.

    A run that was stopped goes on where it was; width_search.json keeps every trial.
    """
    run.say(f"search     {run.config.criterion_name}, widths for {run.config.search_minutes:g} minutes")
    dense.to(run.device)
    known = [normalize for normalize in get_args(Normalize) if normalize != "latency" or graph.times]
    scores = choice.scores_each(dense, graph, budget, known)
    ranked = scores[choice.normalization]
    starts = [dataclasses.replace(choice, scope="local").allocate(graph, ranked, budget)]
    starts += [choice.allocate(graph, scores[normalize], budget) for normalize in known]
    held_out = run.split.val_images
    chosen = torch.linspace(0, len(held_out) - 1, min(_GUIDES, len(held_out))).long()
    recover, calibration = repair_of(run)
    with _Display(run.stopping.check) as display:
        found = search_widths(
            dense,
            graph,
            ranked,
            budget,
            calibration.to(run.device),
            run.normalize(held_out[chosen]),
            run.split.val_labels[chosen],
            recover=recover,
            starts=starts,
            seconds=60 * run.config.search_minutes,
            min_channels=choice.min_channels,
            round_to=choice.round_to,
            header_bytes=choice.header_bytes,
            criterion=run.config.criterion_name,
            seed=choice.seed,
            state_file=run.folder.width_search,
            progress=display,
        )
    dense.cpu()
    first, best = found.trials[0], found.best
    repaired = DONE[recover]
    run.say(
        f"search     {len(found.trials)} networks: {repaired}, the global ranking has {first.accuracy:.2%} on "
        f"held-out images, the best {best.accuracy:.2%}"
    )
    return found.plan


class _Display:
    """Shows a search on stderr: a bar on a terminal, a line for every better network elsewhere.

    It asks after every trial, which is on the disk by then, whether the run has to stop.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("widths", total=1.0)
        self._lines = None if console.is_terminal else console
        self._best: WidthTrial | None = None

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, done: float, best: WidthTrial) -> None:
        """Show how far the search is, and the best network."""
        said = f"widths: loss {best.loss:.3f}, accuracy {best.accuracy:.2%}"
        self._bar.update(self._task, completed=done, description=said)
        if self._lines is not None and best != self._best:
            self._lines.print(said, highlight=False, soft_wrap=True)
        self._best = best
        self._check()
