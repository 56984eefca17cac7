"""The criterion's options, chosen on held-out images where the user wants that: options.json."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from prunus.allocation import Budget
from prunus.errors import FileFormatError
from prunus.files import atomic_write_json, read_json
from prunus.graph.channels import ChannelGraph
from prunus.methods import Choice, OptionsChoice, choose_options
from prunus.pipeline.recovering import DONE, repair_of
from prunus.pipeline.run import Run
from prunus.recovery import Repair

_BATCH = 64  # images that run at once, as in the search: what is measured is then the same
_HELD_OUT = 2000  # validation images at most


def obtain_options(run: Run, model: nn.Module, graph: ChannelGraph, budget: Budget, settings: Choice) -> dict[str, Any]:
    """Return the criterion's best options: from the run folder, or tried now on validation images."""
    if run.folder.options.exists():
        run.say("options    done before: options.json")
    else:
        run.say("options    trying those of the criterion on validation images")
        recover, images = repair_of(run)
        found = _tried(run, model, graph, budget, settings, recover, images)
        atomic_write_json(
            run.folder.options,
            {
                "criterion": settings.criterion,
                "budget": run.config.budgets,
                "recovery": recover,
                "plans_evaluated": found.evaluated,
                "chosen": dict(found.best.options),
                "ranking": [point.to_dict() for point in found.ranking],
            },
        )
        shown = ", ".join(f"{name} {value}" for name, value in found.best.options.items())
        run.say(f"options    {shown}: {found.best.accuracy:.2%} {DONE[recover]}, not trained; all are in options.json")
    return chosen_options(run)


def chosen_options(run: Run) -> dict[str, Any]:
    """Read the options that were chosen; FileFormatError where the file is none of ours."""
    found = read_json(run.folder.options, "table of options")
    chosen = found.get("chosen") if isinstance(found, dict) else None
    if not isinstance(chosen, dict):
        raise FileFormatError(
            f"the table of options {run.folder.options} has no entry 'chosen'; delete it to choose them again"
        )
    return chosen


def _tried(
    run: Run,
    model: nn.Module,
    graph: ChannelGraph,
    budget: Budget,
    settings: Choice,
    recover: Repair,
    images: Tensor,
) -> OptionsChoice:
    held_out = run.split.val_images
    spread = torch.linspace(0, len(held_out) - 1, min(_HELD_OUT, len(held_out))).long()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("options")
        return choose_options(
            model,
            graph,
            budget,
            settings.criterion,
            calibration=run.calibration().split(_BATCH),
            held_out=(run.normalize(held_out[spread]), run.split.val_labels[spread]),
            recover=recover,
            recovery_images=images.split(_BATCH),
            normalize=settings.normalize,
            scope=settings.scope,
            min_channels=settings.min_channels,
            round_to=settings.round_to,
            header_bytes=settings.header_bytes,
            seed=settings.seed,
            progress=lambda done, of: progress.update(task, completed=done, total=of),
        )
