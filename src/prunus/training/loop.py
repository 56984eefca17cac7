"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import TrainingError
from prunus.training.checkpoint import Checkpoint, checkpoint_path, describe_run, load_checkpoint, save_checkpoint
from prunus.training.evaluate import evaluate
from prunus.training.hardware import Compute, choose_compute, lay_out
from prunus.training.hook import Hook
from prunus.training.optimiser import build_optimiser, learning_rate, set_learning_rate
from prunus.training.progress import ProgressDisplay
from prunus.training.randomness import epoch_generator
from prunus.training.recipe import Recipe

_STEPS_BETWEEN_LOSS_CHECKS = 50  # reading the loss makes a GPU wait; a NaN stays in the running sum


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


def fit(
    model: nn.Module,
    data: LabelledImages,
    recipe: Recipe,
    *,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    normalize: Callable[[Tensor], Tensor],
    stage: str = "train",
    seed: int = 0,
    checkpoint_dir: Path | str | None = None,
    device: torch.device | str = "cpu",
    hook: Hook | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train `model` in place, and go on from the last finished epoch where a checkpoint of this training exists.

    On the CPU an interrupted and continued training ends with the same bits as one that ran through (with the same
    number of threads). The order of the images and their augmentation depend on (seed, stage, epoch) alone.

    Args:
        model: a classifier (N, C, H, W) → (N, classes); moved to `device`, left in eval mode.
        data: the images; both parts are moved to `device` as uint8.
        recipe: how to train. Its crop_padding, flip and cutout are for whoever builds `augment`.
        augment: makes a float32 network input of a uint8 batch, with randomness from the generator (on `device`).
        normalize: makes a float32 network input of a uint8 batch.
        stage: name of this training in the metrics and of its checkpoint file.
        seed: decides the order and the augmentation of the images.
        checkpoint_dir: folder of `<stage>.ckpt.safetensors`, written after every epoch; None for no checkpoint.
        device: where to train.
        hook: called around every epoch; may change weights before an epoch and end the training after one.
        on_epoch: receives the metrics of every epoch in order; those of a checkpoint first, when it goes on from there.
        progress: whether to show progress on stderr.

    Returns:
        One dict an epoch: stage, epoch (from 1), loss (with label smoothing, augmented), train_accuracy (augmented),
        val_loss, val_accuracy, learning_rate (of the last step), seconds; and what the hook added.

    Raises:
        TrainingError: the loss is no longer finite.
        FileFormatError: the checkpoint is damaged or is that of another training.
        RunError: the checkpoint cannot be written.
    """
    device = torch.device(device)
    model.to(device)
    compute = choose_compute(model, recipe.precision, device, normalize(data.val_images[:2].to(device)))
    lay_out(model, compute.memory_format)
    optimiser = build_optimiser(model, recipe)
    train_images, train_labels = data.train_images.to(device), data.train_labels.to(device)
    val_images, val_labels = data.val_images.to(device), data.val_labels.to(device)
    steps_per_epoch = max(1, len(train_images) // recipe.batch_size)

    path = checkpoint_path(checkpoint_dir, stage) if checkpoint_dir is not None else None
    run = describe_run(recipe, stage, seed, hook, train_labels, val_labels)
    checkpoint = load_checkpoint(path, run, model, optimiser, device) if path else None
    history = list(checkpoint.history) if checkpoint else []
    finished = checkpoint is not None and checkpoint.finished
    if checkpoint and hook:
        hook.load_state(checkpoint.hook_state)
    for metrics in history:
        if on_epoch:
            on_epoch(metrics)

    with ProgressDisplay(stage, recipe.epochs, steps_per_epoch, enabled=progress, done=len(history)) as display:
        while not finished:
            epoch = len(history) + 1
            started = time.perf_counter()
            if hook:
                hook.epoch_start(model, epoch)
            trained = _train_epoch(
                model,
                optimiser,
                train_images,
                train_labels,
                recipe,
                epoch,
                generator=epoch_generator(seed, stage, epoch, device),
                augment=augment,
                compute=compute,
                display=display,
            )
            validated = evaluate(
                model, val_images, val_labels, normalize=lambda batch: compute.place(normalize(batch)), device=device
            )
            metrics = {
                "stage": stage,
                "epoch": epoch,
                **trained,
                "val_loss": validated["loss"],
                "val_accuracy": validated["accuracy"],
                "learning_rate": optimiser.param_groups[0]["lr"],
                "seconds": time.perf_counter() - started,
            }
            finished = bool(hook.epoch_end(model, epoch, metrics)) if hook else False
            finished = finished or epoch == recipe.epochs
            history.append(metrics)
            if path:
                state = Checkpoint(history=history, finished=finished, hook_state=hook.state() if hook else {})
                save_checkpoint(path, run, state, model, optimiser, device)
            if on_epoch:
                on_epoch(metrics)
            display.epoch(metrics)

    lay_out(model, torch.contiguous_format)
    model.eval()
    return history


def _train_epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    epoch: int,
    *,
    generator: torch.Generator,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    compute: Compute,
    display: ProgressDisplay,
) -> dict[str, float]:
    """Take one pass over the images; return the mean loss and accuracy, as seen while training."""
    model.train()
    loss_sum = torch.zeros((), device=compute.device)
    correct = torch.zeros((), dtype=torch.int64, device=compute.device)
    order = torch.randperm(len(images), generator=generator, device=compute.device)
    steps = max(1, len(images) // recipe.batch_size)
    seen = 0
    started = time.perf_counter()
    for step in range(steps):
        set_learning_rate(optimiser, learning_rate(recipe, (epoch - 1) * steps + step, steps))
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        batch, target = compute.place(augment(images[chosen], generator)), labels[chosen]
        with compute.autocast():
            logits = model(batch)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()

        loss_sum += loss.detach()
        correct += (logits.detach().argmax(1) == target).sum()
        seen += len(chosen)
        if (step + 1) % _STEPS_BETWEEN_LOSS_CHECKS == 0 or step == steps - 1:
            _stop_unless_finite(loss_sum, epoch, recipe)
        display.step(seen / (time.perf_counter() - started))
    return {"loss": loss_sum.item() / steps, "train_accuracy": correct.item() / seen}


def _stop_unless_finite(loss: Tensor, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss is no longer finite in epoch {epoch} (learning rate up to {recipe.learning_rate:g}, "
            f"precision {recipe.precision}); try a lower learning rate such as {recipe.learning_rate / 4:g}, a longer "
            "warm-up, or precision float32. Checkpoints of earlier epochs are kept."
        )
