"""Between removal and training: what --recover gives back, measured on the held-out images after every step."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from prunus.errors import FileFormatError
from prunus.files import atomic_write_json, load_tensors, read_json, save_tensors
from prunus.graph.channels import ChannelGraph
from prunus.pipeline.run import Run
from prunus.plan import PruningPlan
from prunus.recovery import Recovered, Repair, even_batches, recover
from prunus.training import evaluate

DONE: dict[Repair, str] = {"recalibrate": "recalibrated", "reconstruct": "refitted"}
_REFITTED = 256  # training images at most that a candidate's layers are refitted on


class Recovery:
    """What is called after every removal of a run, in their order (a `prunus.methods.Recover`), and keeps the record.

    The network of each removal is stored when its steps are done, so that a run that is interrupted later goes on from
    there.
    """

    def __init__(self, run: Run) -> None:
        """Begin a record without removals."""
        self.run = run
        self.rows: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
        """Return the network after the last step, on the CPU; both that are given are moved there too."""
        number = 1 + (self.rows[-1]["removal"] if self.rows else 0)
        path = self.run.folder.recovered(number)
        of = hashlib.sha256(plan.to_json().encode()).hexdigest()
        rows = _go_on(pruned, path, of)
        if rows is None:
            # Sums are in float64, which Apple's devices have not.
            device = self.run.device if self.run.device.type == "cuda" else torch.device("cpu")
            pruned, found = self._carry_out(model.to(device), pruned.to(device), graph, plan)
            rows = [{"removal": number} | row for row in found]
            for network in (model, pruned):
                network.cpu()
            save_tensors(path, pruned.state_dict(), {"plan": of, "rows": json.dumps(rows)})
        self.rows += rows
        return pruned

    def save(self) -> None:
        """Write recovery.json."""
        count = min(self.run.config.calibration_images, len(self.run.split.train_images))
        atomic_write_json(self.run.folder.recovery, {"calibration_images": count, "rows": self.rows})

    def _carry_out(
        self, model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        run = self.run
        rows = [{"step": "removed", "val_accuracy": self._accuracy(pruned)}]
        run.say(f"recover    as removed {rows[0]['val_accuracy']:.2%} of the held-out images are named right")
        batches = even_batches(run.calibration(), run.config.batch_size) if run.config.recovery_steps else []
        started = time.perf_counter()
        with _shown() as progress:
            for done in recover(
                model, pruned, graph, plan, batches, run.config.recovery_steps, seed=run.config.seed, progress=progress
            ):
                pruned = done.model
                row = {"step": done.step, "val_accuracy": self._accuracy(pruned)} | _described(done)
                rows.append(row | {"seconds": round(time.perf_counter() - started, 3)})
                run.say(f"recover    {done.step}: {row['val_accuracy']:.2%}")
                started = time.perf_counter()
        return pruned, rows

    def _accuracy(self, model: nn.Module) -> float:
        run = self.run
        device = next(model.parameters()).device
        images, labels = run.split.val_images, run.split.val_labels
        return evaluate(model, images, labels, normalize=run.normalize, device=device)["accuracy"]


def repair_of(run: Run) -> tuple[Repair, Tensor]:
    """Return what a candidate is judged after, the step that follows as far as it is one of these, and on what."""
    images = run.calibration()
    if "reconstruct" not in run.config.recovery_steps:
        return "recalibrate", images
    return "reconstruct", images[torch.linspace(0, len(images) - 1, min(_REFITTED, len(images))).long()]


def read_recovery(run: Run) -> list[dict[str, Any]]:
    """Read the accuracies in recovery.json; FileFormatError where they are not there."""
    found = read_json(run.folder.recovery, "record of the recovery")
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise FileFormatError(f"the record of the recovery {run.folder.recovery} has no rows")
    return rows


def _go_on(pruned: nn.Module, path: Path, of: str) -> list[dict[str, Any]] | None:
    """Fill a network that was just removed with what an earlier call stored for the same plan; return its rows."""
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path, "checkpoint")
    if metadata.get("plan") != of:
        return None
    pruned.load_state_dict(tensors)
    rows: list[dict[str, Any]] = json.loads(metadata["rows"])
    return rows


def _described(done: Recovered) -> dict[str, int]:
    if done.report is None:
        return {}
    return {"layers_changed": len(done.report.changed), "layers_left": len(done.report.left)}


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal while the steps work; gives what is told of the layers that are done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("recover", total=None)
        yield lambda done, layers: bar.update(task, completed=done, total=layers)
