"""What the processes beside rank 0 do in a run: they wait for its trainings, and take part in each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from rich.console import Console
from torch import nn

from prunus.budget import Budget
from prunus.config import RunConfig
from prunus.cost import predict_cost
from prunus.deploy import load
from prunus.errors import ConfigError, FileFormatError, TrainingError
from prunus.graph.trace import trace
from prunus.methods import Choice, DynamicSearch
from prunus.pipeline.int8 import int8_simulation
from prunus.pipeline.run import Run, prepare
from prunus.pipeline.run_folder import RunFolder
from prunus.pipeline.sparse import sparse_hook
from prunus.stopping import Stopping
from prunus.training import Hook, Recipe
from prunus.training.team import Dismissed, Team, leave_team


@contextlib.contextmanager
def leading(team: Team) -> Iterator[None]:
    """Let the others go when the block ends, however it ends."""
    try:
        yield
    finally:
        team.tell(None)
        leave_team(team)


def follow(config: RunConfig, team: Team, device: torch.device) -> None:
    """Train with rank 0 until it has no more to train; it alone knows what the run is at.

    The run folder and the data are read from the same places as rank 0's. It has read the data before, so that what is
    decoded or downloaded lies in the cache.

    Raises:
        Stopped: this process was asked to end; rank 0 stops as well.
        RunError: another process is gone.
    """
    with Stopping() as stopping, stopping.postponed():
        stopping.expect_signals_twice()
        with contextlib.suppress(Dismissed):
            if team.tell() is not None:
                folder = RunFolder(config.run_dir)
                _serve(prepare(config, folder, device, Console(quiet=True), stopping, team))
        leave_team(team)


def _serve(run: Run) -> None:
    while (task := run.team.tell()) is not None:
        model = load(run.folder.shared)
        with contextlib.suppress(TrainingError, FileFormatError, ConfigError):  # rank 0 meets it as well, and says so
            trained = int8_simulation(run, model) if task["int8"] else model
            run.fit(trained, Recipe(**task["recipe"]), task["stage"], _hook(run, model, task["hook"]))


def _hook(run: Run, model: nn.Module, kind: str | None) -> Hook | None:
    """Make the hook that rank 0 has; one that chooses is only ever asked to rebuild what was chosen."""
    if kind is None:
        return None
    graph = trace(model, run.proof_inputs())
    if kind == "SparseTraining":
        return sparse_hook(run, graph)
    dense = predict_cost(graph, graph.keep_all())
    return DynamicSearch(graph, dense, Budget(**run.config.budgets), Choice("l1_norm"), ramp_epochs=1)
