"""Residual branches that go as a whole, before channels are chosen; branches.json in the run folder says which."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.progress import Progress
from torch import nn

from prunus.branches import choose_branches, drop_branches, set_to_zero
from prunus.cost import format_count
from prunus.files import atomic_write_json
from prunus.graph.branches import without_branches
from prunus.graph.channels import ChannelGraph
from prunus.pipeline.run import Run
from prunus.plan import PruningPlan

_IMAGES = 256  # that a choice is made on, at most
_BATCH = 64  # of them at once: larger ones spend half of the time on getting memory


def obtain_branches(run: Run, dense: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, ChannelGraph]:
    """Return the network without the branches that are to go, as wide as it was, and its graph.

    Which they are is chosen once, and written down.

    Raises:
        ConfigError: the network has not so many branches.
    """
    if not run.config.drop_branches:
        return dense, graph
    images = run.calibration()[:_IMAGES].to(run.device).split(_BATCH)
    dense = dense.to(run.device)
    if not run.folder.branches.exists():
        run.say(f"branches   choosing {run.config.drop_branches} to leave out")
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("branches", total=run.config.drop_branches)
            chosen = choose_branches(
                dense,
                graph,
                images,
                run.config.drop_branches,
                progress=lambda done: bar.update(task, completed=done),
            )
        for one in chosen:
            run.say(f"branches   {one.branch.name} goes, and with it {format_count(one.macs)} MACs")
        rows = [dataclasses.asdict(one.branch) | {"divergence": one.divergence, "macs": one.macs} for one in chosen]
        atomic_write_json(run.folder.branches, {"branches": rows})
    silent, smaller = drop_branches(dense, graph, dropped_branches(run), images)
    dense.cpu()
    return silent.cpu(), smaller


def rehearsed_branches(run: Run, model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
    """Return the graph of the untrained network without as many branches as are to go.

    Raises:
        ConfigError: the network has not so many branches.
    """
    count = run.config.drop_branches
    if not count:
        return graph
    chosen = choose_branches(model, graph, run.proof_inputs(), count)
    return without_branches(graph, [one.branch.name for one in chosen])


def dropped_branches(run: Run) -> list[str]:
    """Return the names of the branches that go, in their order; none before they are chosen."""
    return [row["name"] for row in run.folder.read_branches()]


def with_note(run: Run, plan: PruningPlan) -> PruningPlan:
    """Return the plan with a note of the branches that went."""
    names = dropped_branches(run)
    note = f"residual branches that were left out, in their order: {', '.join(names)}"
    return plan.model_copy(update={"notes": (*plan.notes, note)}) if names else plan


def silence_branches(run: Run, model: nn.Module) -> None:
    """Silence the branches that were dropped, in a network that got new weights."""
    set_to_zero(model, [name for row in run.folder.read_branches() for name in (*row["parameters"], *row["means"])])
