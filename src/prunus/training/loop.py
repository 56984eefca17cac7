"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunus.errors import ConfigError, TrainingError
from prunus.training.averaging import average_of
from prunus.training.checkpoint import (
    Checkpoint,
    CheckpointStore,
    checkpoint_path,
    describe_run,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from prunus.training.distillation import Loss, make_loss
from prunus.training.evaluate import evaluate
from prunus.training.hardware import Compute, choose_compute, lay_out_model
from prunus.training.hook import Hook, Reshaper, StepHook
from prunus.training.optimiser import build_optimiser, learning_rate, set_learning_rate
from prunus.training.progress import ProgressDisplay
from prunus.training.randomness import epoch_generator, seed_everything
from prunus.training.recipe import Recipe

_STEPS_BETWEEN_LOSS_CHECKS = 50  # reading the loss makes a GPU wait; a NaN stays in the running sum


Augment = Callable[[Tensor, torch.Generator], Tensor]  # uint8 batch, where its randomness comes from → network input
Normalize = Callable[[Tensor], Tensor]  # uint8 batch → network input


class LabelledImages(Protocol):
    """Training and validation images: uint8 (N, C, H, W), labels int64 (N,)."""

    @property
    def train_images(self) -> Tensor: ...  # noqa: D102
    @property
    def train_labels(self) -> Tensor: ...  # noqa: D102
    @property
    def val_images(self) -> Tensor: ...  # noqa: D102
    @property
    def val_labels(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class _Images:
    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor


def fit(
    model: nn.Module,
    data: LabelledImages,
    recipe: Recipe,
    *,
    augment: Augment,
    normalize: Normalize,
    stage: str = "train",
    seed: int = 0,
    checkpoint_dir: Path | str | None = None,
    device: torch.device | str = "cpu",
    hook: Hook | None = None,
    teacher: nn.Module | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda metrics: None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train `model` in place, and go on from the last finished epoch where a checkpoint of this training exists.

    On the CPU an interrupted and continued training ends with the same bits as one that ran through, given the same
    number of threads. All randomness follows from (seed, stage): the global generators, of which dropout draws, are
    seeded at the start; the order of the images and their augmentation have a generator of their own every epoch.

    Args:
        model: a classifier (N, C, H, W) → (N, classes); moved to `device`, left in eval mode.
        data: the images; both parts are moved to `device` as uint8.
        recipe: how to train. Its crop_padding, flip and cutout are for whoever builds `augment`.
        augment: makes a float32 network input of a uint8 batch, with randomness from the generator (on `device`).
        normalize: makes a float32 network input of a uint8 batch.
        stage: name of this training in the metrics and of its checkpoint file.
        seed: decides, with `stage`, about everything random.
        checkpoint_dir: folder of `<stage>.ckpt.safetensors`, written after every epoch; None for no checkpoint.
        device: where to train.
        hook: called around every epoch; may change weights before an epoch and end the training after one. It is shown
            the network that trains, also where the recipe averages its weights. A StepHook is called after every step
            of the optimiser as well. A Reshaper may also put another network in the place of `model`, which then stays
            as it was and is not trained on.
        teacher: a classifier of the same images and classes, for a recipe with distill above 0; it is left as it is.
        on_epoch: receives the metrics of every epoch in order; those of a checkpoint first, when it goes on from there.
        progress: whether to show progress on stderr.

    Returns:
        One dict an epoch: stage, epoch (from 1), loss (augmented; with label smoothing and teacher), train_accuracy
        (augmented), val_loss, val_accuracy, learning_rate (of the last step), seconds; and what the hook added.

    Raises:
        ConfigError: the recipe distils and there is no teacher, or the other way round; or it averages the weights of a
            network that a Reshaper may change.
        TrainingError: the loss is no longer finite.
        FileFormatError: the checkpoint is damaged or is that of another training.
        RunError: the checkpoint cannot be written.
    """
    device = torch.device(device)
    data = _on_device(data, device)
    steps_per_epoch = max(1, len(data.train_images) // recipe.batch_size)
    sample = normalize(data.val_images[:2])
    loss = make_loss(recipe, teacher, device, sample)
    compute = choose_compute(model.to(device), recipe.precision, device, sample)
    if isinstance(hook, Reshaper) and recipe.ema:
        raise ConfigError(f"training recipe: ema is {recipe.ema:g}, and the hook may change the network; set ema=0.")

    def prepare(images: Tensor) -> Tensor:
        return compute.lay_out(normalize(images))

    run = describe_run(recipe, stage, seed, hook, teacher, data.train_labels, data.val_labels)

    def begin(model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[_Parts, CheckpointStore]:
        """Make what a network is trained with from here on."""
        lay_out_model(model, compute.memory_format)
        if isinstance(hook, StepHook):
            _call_after_steps(optimiser, hook, model)
        average = average_of(model, recipe.ema)
        store = CheckpointStore(checkpoint_path(checkpoint_dir, stage), run, model, optimiser, device, average)
        return _Parts(model, optimiser, average, loss, compute), store

    parts, store = begin(model, build_optimiser(model, recipe))
    if isinstance(hook, Reshaper) and (found := read_checkpoint(store)):
        hook.load_state(found.hook_state)
        model = hook.rebuild(model)
        parts, store = begin(model, build_optimiser(model, recipe))
    seed_everything(seed, stage)
    checkpoint = load_checkpoint(store) or Checkpoint(history=[], finished=False, hook_state={})
    history, finished = list(checkpoint.history), checkpoint.finished
    if hook and history and not isinstance(hook, Reshaper):
        hook.load_state(checkpoint.hook_state)
    for metrics in history:
        on_epoch(metrics)

    with ProgressDisplay(stage, recipe.epochs, steps_per_epoch, enabled=progress, done=len(history)) as display:
        while not finished:
            epoch, started = len(history) + 1, time.perf_counter()
            if hook:
                hook.epoch_start(parts.model, epoch)
            if isinstance(hook, Reshaper) and (replaced := hook.replace(parts.model, parts.optimiser)):
                parts, store = begin(*replaced)
            generator = epoch_generator(seed, stage, epoch, device)
            trained = _train_epoch(parts, data, recipe, epoch, augment, generator, display)
            validated = evaluate(parts.delivered, data.val_images, data.val_labels, normalize=prepare, device=device)
            _stop_unless_finite(validated["loss"], epoch, recipe)
            metrics = {"stage": stage, "epoch": epoch} | trained | {f"val_{k}": v for k, v in validated.items()}
            metrics |= {
                "learning_rate": parts.optimiser.param_groups[0]["lr"],
                "seconds": time.perf_counter() - started,
            }

            stopped = bool(hook and hook.epoch_end(parts.model, epoch, metrics))
            finished = stopped or epoch == recipe.epochs
            history.append(metrics)
            hook_state = hook.state() if hook else {}
            save_checkpoint(store, Checkpoint(history=history, finished=finished, hook_state=hook_state))
            on_epoch(metrics)
            display.epoch(metrics)

    if parts.average is not None:
        parts.model.load_state_dict(parts.delivered.state_dict())
    lay_out_model(parts.model, torch.contiguous_format)
    parts.model.eval()
    return history


def _call_after_steps(optimiser: torch.optim.Optimizer, hook: StepHook, model: nn.Module) -> None:
    def step_end(stepped: torch.optim.Optimizer, *_: Any) -> None:
        hook.step_end(model, stepped.param_groups[0]["lr"])

    optimiser.register_step_post_hook(step_end)


def _on_device(data: LabelledImages, device: torch.device) -> LabelledImages:
    parts = (data.train_images, data.train_labels, data.val_images, data.val_labels)
    return _Images(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class _Parts:
    """What a step works with."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: AveragedModel | None
    loss: Loss
    compute: Compute

    @property
    def delivered(self) -> nn.Module:
        """The network that is evaluated, and handed out at the end."""
        delivered: nn.Module = self.model if self.average is None else self.average.module
        return delivered


def _train_epoch(
    parts: _Parts,
    data: LabelledImages,
    recipe: Recipe,
    epoch: int,
    augment: Augment,
    generator: torch.Generator,
    display: ProgressDisplay,
) -> dict[str, float]:
    """Take one pass over the images; return the mean loss and accuracy, as seen while training."""
    model, optimiser, compute = parts.model, parts.optimiser, parts.compute
    model.train()
    loss_sum = torch.zeros((), device=compute.device)
    correct = torch.zeros((), dtype=torch.int64, device=compute.device)
    order = torch.randperm(len(data.train_labels), generator=generator, device=compute.device)
    steps = max(1, len(order) // recipe.batch_size)
    seen, started = 0, time.perf_counter()
    for step in range(steps):
        set_learning_rate(optimiser, learning_rate(recipe, (epoch - 1) * steps + step, steps))
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        batch = compute.lay_out(augment(data.train_images[chosen], generator))
        target = data.train_labels[chosen]
        with compute.autocast():
            logits = model(batch)
        loss = parts.loss(logits.float(), batch, target)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if parts.average is not None:
            parts.average.update_parameters(model)

        loss_sum += loss.detach()
        correct += (logits.detach().argmax(1) == target).sum()
        seen += len(chosen)
        if (step + 1) % _STEPS_BETWEEN_LOSS_CHECKS == 0 or step == steps - 1:
            _stop_unless_finite(loss_sum.item(), epoch, recipe)
        display.step(seen / (time.perf_counter() - started))
    return {"loss": loss_sum.item() / steps, "train_accuracy": correct.item() / seen}


def _stop_unless_finite(loss: float, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is no longer finite in epoch {epoch} (learning rate up to {recipe.learning_rate:g}, "
            f"precision {recipe.precision}); try a lower learning rate such as {recipe.learning_rate / 4:g}, a longer "
            "warm-up, or precision float32. Checkpoints of earlier epochs are kept."
        )
