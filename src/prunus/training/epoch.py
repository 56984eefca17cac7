"""One epoch of a training: the steps, and where a checkpoint may be written between two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunus.errors import TrainingError
from prunus.stopping import Stopping
from prunus.training.checkpoint import Position
from prunus.training.compiling import Forward
from prunus.training.distillation import Loss
from prunus.training.feeding import Images, batches
from prunus.training.hardware import Compute
from prunus.training.mixing import Blend, draw_blend
from prunus.training.optimiser import learning_rate, set_learning_rate
from prunus.training.progress import ProgressDisplay
from prunus.training.randomness import generator_state, seed_step, set_generator_state
from prunus.training.recipe import Recipe
from prunus.training.team import ALONE, Team

_STEPS_BETWEEN_LOSS_CHECKS = 50  # reading the loss makes a GPU wait; a NaN stays in the running sum

Augment = Callable[[Tensor, torch.Generator], Tensor]  # uint8 batch, where its randomness comes from → network input
Normalize = Callable[[Tensor], Tensor]  # uint8 batch → network input


class LabelledImages(Protocol):
    """Training and validation images: uint8 (N, C, H, W), labels int64 (N,)."""

    @property
    def train_images(self) -> Images: ...  # noqa: D102
    @property
    def train_labels(self) -> Tensor: ...  # noqa: D102
    @property
    def val_images(self) -> Images: ...  # noqa: D102
    @property
    def val_labels(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Parts:
    """What a step works with."""

    model: nn.Module
    forward: Forward  # of `model`, compiled or not
    optimiser: torch.optim.Optimizer
    average: AveragedModel | None
    loss: Loss
    compute: Compute
    team: Team = ALONE
    name: str = ""  # of the training, for the random numbers of processes beside the first

    @property
    def delivered(self) -> nn.Module:
        """The network that is evaluated, and handed out at the end."""
        delivered: nn.Module = self.model if self.average is None else self.average.module
        return delivered


class Pause:
    """When a training writes a checkpoint within an epoch: because it has to leave, or because the last one is old."""

    def __init__(self, stopping: Stopping, seconds: float, save: Callable[[Position], None]) -> None:
        self._stopping, self._seconds, self._save = stopping, seconds, save
        self.saved()

    def saved(self) -> None:
        """Note that a checkpoint was written now."""
        self._next = time.monotonic() + self._seconds

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.leaving or time.monotonic() >= self._next

    @property
    def leaving(self) -> bool:
        """Whether the training has been asked to end."""
        return self._stopping.due

    def take(self, position: Position, leave: bool = False) -> None:
        """Write the checkpoint, and leave if that is what it is for; `leave` where another process was asked to."""
        self._save(position)
        if leave:
            self._stopping.stop_with_others()
        self._stopping.check()


def train_epoch(
    parts: Parts,
    data: LabelledImages,
    recipe: Recipe,
    epoch: int,
    augment: Augment,
    generator: torch.Generator,
    display: ProgressDisplay,
    position: Position,
    pause: Pause,
) -> dict[str, float]:
    """Take one pass over the images, from `position` on; return the mean loss and accuracy, as seen while training."""
    model, optimiser, compute, team = parts.model, parts.optimiser, parts.compute, parts.team
    model.train()
    loss_sum = torch.tensor(position.loss_sum if team.leads else 0.0, device=compute.device)
    correct = torch.tensor(position.correct if team.leads else 0, device=compute.device)
    order = torch.randperm(len(data.train_labels), generator=generator, device=compute.device)
    set_generator_state(generator, position.generator)
    steps = max(1, len(order) // recipe.batch_size)
    seen, started = 0, time.perf_counter()
    numbers = [order[step * recipe.batch_size : (step + 1) * recipe.batch_size] for step in range(steps)]
    feed = batches(data.train_images, numbers[position.step :])
    for step, images in enumerate(feed, start=position.step):
        set_learning_rate(optimiser, learning_rate(recipe, (epoch - 1) * steps + step, steps))
        chosen = numbers[step]
        batch = compute.lay_out(augment(images, generator))
        target = data.train_labels[chosen]
        blend = draw_blend(len(chosen), recipe.mixup, generator, compute.device) if recipe.mixup else None
        if blend:
            batch = compute.lay_out(blend.images(batch))
        optimiser.zero_grad()
        if not team.leads:
            seed_step(f"{parts.name}/{epoch}/{step}/{team.rank}")
        loss, right = _learn(parts, batch, target, blend, recipe.accumulate)
        together = team.add_gradients(model, (pause.leaving, team.leads and pause.due)) if team.size > 1 else None
        optimiser.step()
        if parts.average is not None:
            parts.average.update_parameters(model)

        loss_sum += loss
        correct += right
        seen += len(chosen)
        last = step + 1 == steps
        pausing = not last and (any(together) if together else pause.due)
        if pausing or last or (step + 1) % _STEPS_BETWEEN_LOSS_CHECKS == 0:
            stop_unless_finite(team.total(loss_sum), epoch, recipe)
        display.step(seen / (time.perf_counter() - started))
        if pausing or last:
            team.average_statistics(model, parts.average)
        if pausing:
            reached = Position(
                step=step + 1,
                loss_sum=team.total(loss_sum),
                correct=int(team.total(correct)),
                seconds=position.seconds + time.perf_counter() - started,
                generator=generator_state(generator),
            )
            pause.take(reached, leave=bool(together and together[0]))
    seen += position.step * recipe.batch_size
    return {"loss": team.total(loss_sum) / steps, "train_accuracy": team.total(correct) / seen}


def _learn(parts: Parts, batch: Tensor, target: Tensor, blend: Blend | None, pieces: int) -> tuple[Tensor, Tensor]:
    """Add up the gradients of a batch's mean loss, piece by piece; return the loss and how many are named right.

    Where several processes train, both are what this one's part of the batch adds to those of the whole.
    """
    losses, right = [], []
    own = parts.team.part(len(batch))
    for number in range(pieces):
        count = own.stop - own.start
        piece = slice(own.start + count * number // pieces, own.start + count * (number + 1) // pieces)
        images, labels = batch[piece], target[piece]
        if not len(labels):  # of fewer images than pieces
            continue
        if parts.compute.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # what an earlier pass gave may be overwritten
        with parts.compute.autocast():
            logits = parts.forward(images)
        wanted = blend.targets(target, logits.shape[1])[piece] if blend else labels
        loss = parts.loss(logits.float(), images, wanted)
        if len(labels) < len(batch):
            loss = loss * (len(labels) / len(batch))
        torch.autograd.backward(loss)
        losses.append(loss.detach())
        right.append((logits.detach().argmax(1) == labels).sum())
    return (losses[0], right[0]) if len(losses) == 1 else (torch.stack(losses).sum(), torch.stack(right).sum())


def stop_unless_finite(loss: float, epoch: int, recipe: Recipe) -> None:
    """End the training by a TrainingError where the loss is no number."""
    if not math.isfinite(loss):
        raise diverged(epoch, recipe)


def finite(model: nn.Module) -> bool:
    """Tell whether all weights are numbers."""
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def diverged(epoch: int, recipe: Recipe) -> TrainingError:
    """Say what to try."""
    return TrainingError(
        f"the loss is no longer finite in epoch {epoch} (learning rate up to {recipe.learning_rate:g}, "
        f"precision {recipe.precision}); try a lower learning rate such as {recipe.learning_rate / 4:g}, a longer "
        "warm-up, or precision float32. The last checkpoint is from before, and is kept."
    )
