"""Trainings for several processes: `torchrun … several.py FOLDER STEP`; rank 0 leaves the weights in FOLDER."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.files import save_tensors
from prunus.stopping import Stopped, Stopping
from prunus.training import Recipe, fit
from prunus.training.team import ALONE, Team, join_team, leave_team
from tests.training.conftest import augment, make_images, make_model, normalize
from tests.training.test_resume import SoftMask

UNEVEN = Recipe(3, batch_size=15, learning_rate=0.05, precision="float32", mixup=0.2, label_smoothing=0.1)
SYNCHRONISED = Recipe(3, batch_size=15, learning_rate=0.05, precision="float32", sync_batchnorm=True)
DROPOUT = Recipe(4, batch_size=16, learning_rate=0.05, warmup_epochs=1, precision="float32", ema=0.9)


def plain() -> nn.Module:
    """A network that sees one image at a time and draws nothing."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))


def with_batch_norm() -> nn.Module:
    """A network that sees the batch."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8)]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def train(model: nn.Module, recipe: Recipe, team: Team = ALONE, **changes: Any) -> list[dict[str, Any]]:
    """Train on the images of these tests."""
    settings: dict[str, Any] = {"augment": augment, "normalize": normalize, "stage": "dense", "progress": False}
    return fit(model, make_images(), recipe, **settings | changes, team=team)


def interrupted(number: signal.Signals, rank: int, step: int) -> Any:
    """Make an augmentation that sends one process a signal before a step, counted from the start of the process."""
    steps = 0

    def view(batch: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == step and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), number)
        return augment(batch, generator)

    return view


def main(folder: Path, what: str) -> None:
    """Run one launch of the tests."""
    torch.set_num_threads(1)
    team = join_team(cpu=True)

    def keep(name: str, model: nn.Module, history: list[dict[str, Any]]) -> None:
        save_tensors(folder / f"{name}.{team.rank}.safetensors", model.state_dict(), {"loss": str(history[-1]["loss"])})

    if what == "whole":
        for name, recipe in (("plain", UNEVEN), ("pieces", UNEVEN.__class__(**vars(UNEVEN) | {"accumulate": 3}))):
            model = plain()
            keep(name, model, train(model, recipe, team))
        model = with_batch_norm()
        keep("batchnorm", model, train(model, SYNCHRONISED, team))
        model = make_model()
        keep("dropout", model, train(model, DROPOUT, team, hook=SoftMask()))
    if what == "killed":  # by rank 0, which has written the checkpoint of the step before
        view = interrupted(signal.SIGKILL, 0, 13)
        train(make_model(), DROPOUT, team, hook=SoftMask(), checkpoint_dir=folder, augment=view, checkpoint_minutes=0)
    if what == "resumed":
        model = make_model()
        keep("killed", model, train(model, DROPOUT, team, hook=SoftMask(), checkpoint_dir=folder))
        model = make_model()
        with Stopping() as stopping:
            view = interrupted(signal.SIGTERM, 1, 8)  # a process that does not lead
            try:
                settings = {"checkpoint_dir": folder / "asked", "augment": view, "stopping": stopping}
                train(model, DROPOUT, team, hook=SoftMask(), **settings)
            except Stopped as reason:
                (folder / f"stopped.{team.rank}").write_text(str(reason.exit_code))
        model = make_model()
        keep("asked", model, train(model, DROPOUT, team, hook=SoftMask(), checkpoint_dir=folder / "asked"))
    leave_team(team)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
