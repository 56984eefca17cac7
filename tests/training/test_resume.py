from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunus.files import load_tensors
from prunus.stopping import Stopped, Stopping
from prunus.training import Recipe
from tests.training.conftest import augment, step_by_step

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]
load_state_dict = nn.Module.load_state_dict


class SoftMask:
    """A hook that changes weights before every epoch, remembers what it did, and draws from the global generators."""

    def __init__(self) -> None:
        self.masked: list[int] = []
        self.started = 0.0
        self.events: list[str] = []

    def epoch_start(self, model: nn.Module, epoch: int) -> None:
        self.events.append(f"start {epoch}")
        self.started = random.random()
        channel = (random.randrange(8) + int(np.random.randint(8))) % 8
        self.masked.append(channel)
        with torch.no_grad():
            model[1].weight[self.masked] = 0  # type: ignore[index]

    def epoch_end(self, model: nn.Module, epoch: int, metrics: dict[str, Any]) -> bool:
        self.events.append(f"end {epoch}")
        metrics["masked"] = len(set(self.masked))
        metrics["started"] = self.started
        np.random.standard_normal()  # leaves a second deviate behind in the generator
        random.gauss(0, 1)
        return False

    def state(self) -> dict[str, Any]:
        self.events.append("state")
        return {"masked": self.masked, "started": self.started}

    def load_state(self, state: dict[str, Any]) -> None:
        self.events.append("load")
        self.masked, self.started = list(state["masked"]), state["started"]


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in metrics.items() if name != "seconds"} for metrics in history]


def teacher() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 3))


def interrupted_in(epoch: int, batches: int, at: int = 3) -> Callable[[Tensor, torch.Generator], Tensor]:
    """An augmentation during which the user presses Ctrl-C."""
    calls = 0

    def press(batch: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == (epoch - 1) * batches + at:
            raise KeyboardInterrupt
        return augment(batch, generator)

    return press


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


KINDS = pytest.mark.parametrize(
    "changes",
    [{"precision": "float32"}, {"precision": "bfloat16"}, {"distill": 0.5, "ema": 0.9}],
    ids=["float32", "bfloat16", "distilled and averaged"],
)


@KINDS
def test_stopped_after_every_step(train: Train, recipe: Recipe, tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = dataclasses.replace(recipe, **changes)
    settings: dict[str, Any] = {"recipe": recipe, "teacher": teacher() if recipe.distill else None}
    model, history = train(checkpoint_dir=tmp_path / "whole", hook=SoftMask(), **settings)
    hooks: list[SoftMask] = []

    def one_step(stopping: Stopping) -> tuple[nn.Module, list[dict[str, Any]]]:
        hooks.append(SoftMask())
        return train(checkpoint_dir=tmp_path / "parts", hook=hooks[-1], stopping=stopping, **settings)

    stops, (again, told) = step_by_step(one_step)
    assert stops == 4 * 5 - 1
    assert without_time(told) == without_time(history)
    assert same_weights(again, model)
    assert hooks[2].events == ["load", "state"]  # within the first epoch
    assert hooks[5].events == ["load", "start 2", "state"]


def test_a_signal_within_an_epoch(train: Train) -> None:
    model, history = train(checkpoint_dir=None)
    with pytest.raises(Stopped) as stopped, Stopping() as stopping:
        train(stopping=stopping, augment=signalled(step=8))
    assert stopped.value.exit_code == 143
    seen: list[Tensor] = []
    again, told = train(augment=lambda batch, generator: [seen.append(batch), augment(batch, generator)][1])
    assert len(seen) == 20 - 8
    assert without_time(told) == without_time(history)
    assert same_weights(again, model)


def signalled(step: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """An augmentation during which SIGTERM comes."""
    calls = 0

    def send(batch: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(batch, generator)

    return send


def test_a_signal_in_the_last_step_of_all_leaves_a_finished_training(train: Train) -> None:
    with pytest.raises(Stopped), Stopping() as stopping:
        train(stopping=stopping, augment=signalled(step=20))
    _, history = train(augment=signalled(step=1))  # no step is left to be made
    assert len(history) == 4


def test_checkpoints_within_an_epoch_come_by_the_clock(train: Train) -> None:
    model, history = train(checkpoint_dir=None)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint_minutes=0, augment=interrupted_in(epoch=3, batches=5, at=4))
    seen: list[Tensor] = []
    again, told = train(augment=lambda batch, generator: [seen.append(batch), augment(batch, generator)][1])
    assert len(seen) == 20 - 13
    assert without_time(told) == without_time(history)
    assert same_weights(again, model)


@KINDS
def test_2_and_2_epochs_are_4_epochs(train: Train, recipe: Recipe, tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = dataclasses.replace(recipe, **changes)
    settings: dict[str, Any] = {"recipe": recipe, "teacher": teacher() if recipe.distill else None}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model, history = train(checkpoint_dir=whole, hook=SoftMask(), **settings)
    after = (torch.get_rng_state(), random.getstate(), np.random.random(3).tolist())

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint_dir=parts, hook=SoftMask(), augment=interrupted_in(epoch=3, batches=5), **settings)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    resumed, resumed_history = train(checkpoint_dir=parts, hook=SoftMask(), **settings)

    assert without_time(resumed_history) == without_time(history)
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    ours, _ = load_tensors(parts / "dense.ckpt.safetensors")
    theirs, _ = load_tensors(whole / "dense.ckpt.safetensors")
    assert any(name.startswith("momentum/") for name in theirs)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert torch.equal(torch.get_rng_state(), after[0])
    assert random.getstate() == after[1]
    assert np.random.random(3).tolist() == after[2]


@pytest.mark.parametrize("part", ["momentum/", "average/"])
def test_resuming_needs_every_part_of_the_checkpoint(train: Train, recipe: Recipe, tmp_path: Path, part: str) -> None:
    """The comparison above would notice: a training whose momentum or average is lost ends elsewhere."""
    from prunus.training import checkpoint

    recipe = dataclasses.replace(recipe, ema=0.9)
    model, _ = train(recipe=recipe, checkpoint_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe=recipe, augment=interrupted_in(epoch=3, batches=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_under", lambda prefix, tensors: _keep_but(prefix, tensors, part))
        patch.setattr(checkpoint, "_check_fit", lambda *arguments, **options: None)
        patch.setattr(AveragedModel, "load_state_dict", lambda self, state: load_state_dict(self, state, strict=False))
        forgetful, _ = train(recipe=recipe)
    assert not torch.equal(forgetful.state_dict()["0.weight"], model.state_dict()["0.weight"])


def _keep_but(prefix: str, tensors: dict[str, Tensor], dropped: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix) and prefix != dropped}


def test_a_finished_training_is_not_trained_again(train: Train) -> None:
    model, history = train()
    told: list[dict[str, Any]] = []
    again, same_history = train(on_epoch=told.append, augment=interrupted_in(epoch=1, batches=5, at=1))
    assert same_history == history == told
    assert torch.equal(again.state_dict()["0.weight"], model.state_dict()["0.weight"])
    assert not again.training


def test_on_epoch_hears_of_every_epoch_once_a_call(train: Train) -> None:
    first: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        train(on_epoch=first.append, augment=interrupted_in(epoch=3, batches=5))
    assert [metrics["epoch"] for metrics in first] == [1, 2]
    second: list[dict[str, Any]] = []
    train(on_epoch=second.append)
    assert [metrics["epoch"] for metrics in second] == [1, 2, 3, 4]
    assert second[:2] == first


def test_an_interruption_in_the_first_epoch_starts_again(train: Train, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(augment=interrupted_in(epoch=1, batches=5))
    assert not list(tmp_path.rglob("*.safetensors"))
    _, history = train()
    assert len(history) == 4


def test_the_order_of_the_calls_of_a_hook(train: Train) -> None:
    hook = SoftMask()
    with pytest.raises(KeyboardInterrupt):
        train(hook=hook, augment=interrupted_in(epoch=2, batches=5))
    assert hook.events == ["start 1", "end 1", "state", "start 2"]
    hook = SoftMask()
    train(hook=hook)
    assert hook.events[:3] == ["load", "start 2", "end 2"]


class StopAfterTwo(SoftMask):
    def epoch_end(self, model: nn.Module, epoch: int, metrics: dict[str, Any]) -> bool:
        super().epoch_end(model, epoch, metrics)
        return epoch == 2


def test_a_hook_ends_the_training_and_it_stays_ended(train: Train) -> None:
    _, history = train(hook=StopAfterTwo())
    assert [metrics["epoch"] for metrics in history] == [1, 2]
    assert history[0]["masked"] == 1
    hook = StopAfterTwo()
    _, again = train(hook=hook)
    assert again == history
    assert hook.events == ["load"]


SCRIPT = """
import functools, sys
import torch
from prunus.data import augment, load_data, normalize
from prunus.models import build_model
from prunus.training import dense_recipe, fit

torch.set_num_threads(1)
data = load_data("digits")
stats = {"mean": data.mean, "std": data.std}
torch.manual_seed(0)
model = build_model("resnet8", num_classes=len(data.classes), in_channels=data.train_images.shape[1])
fit(model, data.split(0.4, seed=0), dense_recipe(4), checkpoint_dir=sys.argv[1], progress=False,
    augment=functools.partial(augment, crop_padding=1, flip=False, cutout=0, **stats),
    normalize=functools.partial(normalize, **stats),
    on_epoch=lambda metrics: print(metrics["epoch"], flush=True))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True)


def test_kill_9_and_the_same_command_again(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "1\n"
    time.sleep(0.05)  # into the second epoch
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    _, metadata = load_tensors(tmp_path / "killed" / "train.ckpt.safetensors")
    assert not json.loads(metadata["prunus_checkpoint"])["finished"]
    resumed = start(tmp_path / "killed")
    for process in (whole, resumed):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert output.split() == ["1", "2", "3", "4"]
    theirs, _ = load_tensors(tmp_path / "whole" / "train.ckpt.safetensors")
    ours, _ = load_tensors(tmp_path / "killed" / "train.ckpt.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
