"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.stopping import Stopping
from prunus.training.averaging import average_of
from prunus.training.checkpoint import (
    Checkpoint,
    CheckpointStore,
    Position,
    checkpoint_path,
    describe_run,
    find_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from prunus.training.compiling import Forward, compiled
from prunus.training.distillation import make_loss
from prunus.training.epoch import (
    Augment,
    LabelledImages,
    Normalize,
    Parts,
    Pause,
    diverged,
    finite,
    stop_unless_finite,
    train_epoch,
)
from prunus.training.evaluate import evaluate
from prunus.training.feeding import Images
from prunus.training.hardware import choose_compute, lay_out_model
from prunus.training.hook import Hook, Reshaper, StepHook
from prunus.training.optimiser import build_optimiser
from prunus.training.progress import ProgressDisplay
from prunus.training.randomness import epoch_generator, seed_everything
from prunus.training.recipe import Recipe
from prunus.training.synchronising import synchronised
from prunus.training.team import ALONE, Team
from prunus.training.together import prepare_epoch, share_state


@dataclass(frozen=True)
class _Images:
    train_images: Images
    train_labels: Tensor
    val_images: Images
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
    stopping: Stopping | None = None,
    checkpoint_minutes: float = 10.0,
    checkpoints_kept: int = 2,
    compile: bool = False,
    team: Team = ALONE,
) -> list[dict[str, Any]]:
    """Train `model` in place, and go on from the last step that a checkpoint of this training has.

    On the CPU an interrupted and continued training ends with the same bits as one that ran through, given the same
    number of threads. All randomness follows from (seed, stage): the global generators, of which dropout draws, are
    seeded at the start; the order of the images and their augmentation have a generator of their own every epoch.

    Args:
        model: a classifier (N, C, H, W) → (N, classes); moved to `device`, left in eval mode.
        data: the images; both parts are moved to `device` as uint8, but for what is no tensor in memory: that is read
            ahead, batch by batch.
        recipe: how to train. Its crop_padding, flip and cutout are for whoever builds `augment`.
        augment: makes a float32 network input of a uint8 batch, with randomness from the generator (on `device`).
        normalize: makes a float32 network input of a uint8 batch.
        stage: name of this training in the metrics and of its checkpoint file.
        seed: decides, with `stage`, about everything random.
        checkpoint_dir: folder of `<stage>.ckpt.safetensors`, written after every epoch, within long ones, and before
            the training leaves for `stopping`; None for no checkpoint.
        device: where to train.
        hook: called around every epoch; may change weights before an epoch and end the training after one. It is shown
            the network that trains, also where the recipe averages its weights. A StepHook is called after every step
            of the optimiser as well. A Reshaper may also put another network in the place of `model`, which then stays
            as it was and is not trained on.
        teacher: a classifier of the same images and classes, for a recipe with distill above 0; it is left as it is.
        on_epoch: receives the metrics of every epoch in order; those of a checkpoint first, when it goes on from there.
        progress: whether to show progress on stderr.
        stopping: asked after every step whether to leave; in `with Stopping() as stopping`, for SIGINT and SIGTERM.
        checkpoint_minutes: from one checkpoint within an epoch to the next, at least.
        checkpoints_kept: how many stay on the disk, at least 1; where the last one is damaged, the one before serves.
        compile: whether the network is trained through torch.compile, with CUDA graphs on CUDA; where that fails, which
            is said on stderr, it is trained as it is.
        team: the processes that train this network together, each of which calls `fit` with the same arguments. Every
            batch is shared out among them; rank 0 alone writes checkpoints, asks the hook and is given metrics, and
            the others follow. A Reshaper serves the others to rebuild what rank 0 has; a StepHook acts on all.

    Returns:
        One dict an epoch: stage, epoch (from 1), loss (augmented; with label smoothing and teacher), train_accuracy
        (augmented), val_loss, val_accuracy, learning_rate (of the last step), seconds; and what the hook added.

    Raises:
        ConfigError: the recipe distils and there is no teacher, or the other way round; or it averages the weights of a
            network that a Reshaper may change.
        TrainingError: the loss or a weight is no longer finite; the last checkpoint is from before.
        FileFormatError: all checkpoints are damaged, or the last is that of another training.
        RunError: the checkpoint cannot be written; the last one is as it was.
        Stopped: `stopping` asked for it; the same call goes on with the next step.
    """
    device = torch.device(device)
    data = _on_device(data, device)
    steps_per_epoch = max(1, len(data.train_images) // recipe.batch_size)
    sample = normalize(data.val_images[:2])
    loss = make_loss(recipe, teacher, device, sample)
    if isinstance(hook, Reshaper) and recipe.ema:
        raise ConfigError(f"training recipe: ema is {recipe.ema:g}, and the hook may change the network; set ema=0.")

    def prepare(images: Tensor) -> Tensor:
        return parts.compute.lay_out(normalize(images))

    _refuse_small_parts(team, recipe, len(data.train_images))
    run = describe_run(recipe, stage, seed, hook, teacher, data.train_labels, data.val_labels)

    def begin(model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Parts, CheckpointStore]:
        """Make what a network is trained with from here on."""
        compute = choose_compute(model, recipe.precision, device, sample)  # a narrower network may need another layout
        lay_out_model(model, compute.memory_format)
        if isinstance(hook, StepHook):
            _call_after_steps(optimiser, hook, model)
        average = average_of(model, recipe.ema)
        path = checkpoint_path(checkpoint_dir, stage) if team.leads else None
        store = CheckpointStore(path, run, model, optimiser, device, average, checkpoints_kept)
        piece = -(-min(recipe.batch_size, len(data.train_images)) // (recipe.accumulate * team.size))
        forward: Forward = model
        if compile:
            forward = compiled(model, compute, compute.lay_out(normalize(data.train_images[:piece])))
        return Parts(model, forward, optimiser, average, loss, compute, team, f"{seed}/{stage}"), store

    def save(position: Position, finished: bool = False) -> None:
        """Write a checkpoint after the history so far and a position in the next epoch."""
        if not finite(parts.model):
            raise diverged(len(history) + bool(position.step), recipe)

        def write() -> None:
            state = hook.state() if hook else {}
            save_checkpoint(store, Checkpoint(history=history, finished=finished, hook_state=state, position=position))

        team.lead(write)
        pause.saved()

    parts, store = begin(model.to(device), build_optimiser(model, recipe))
    found = team.lead(lambda: find_checkpoint(store))
    checkpoint = Checkpoint(**team.tell(dict(found.content.model_dump()) if found else {}))
    goes_on = checkpoint != Checkpoint()
    if goes_on and isinstance(hook, Reshaper):
        hook.load_state(checkpoint.hook_state)
        parts, store = begin(network := hook.rebuild(model), build_optimiser(network, recipe))
    seed_everything(seed, stage)
    team.lead(lambda: restore_checkpoint(store, found) if found else None)
    share_state(parts)
    history, finished, position = list(checkpoint.history), checkpoint.finished, checkpoint.position
    if hook and goes_on and not isinstance(hook, Reshaper):
        hook.load_state(checkpoint.hook_state)
    for metrics in history if team.leads else ():
        on_epoch(metrics)

    stopping = stopping or Stopping()
    pause = Pause(stopping, 60 * checkpoint_minutes, save)
    done = len(history) * steps_per_epoch + position.step
    display = ProgressDisplay(stage, recipe.epochs, steps_per_epoch, enabled=progress and team.leads, done=done)
    with stopping.postponed(), display:
        while not finished:
            epoch, started = len(history) + 1, time.perf_counter() - position.seconds
            if hook and not position.step:
                replaced = prepare_epoch(parts, hook, epoch, model, lambda network: build_optimiser(network, recipe))
                if replaced:
                    parts, store = begin(*replaced)
                share_state(parts)
            generator = epoch_generator(seed, stage, epoch, device)
            with synchronised(parts.model, team, recipe.sync_batchnorm):
                trained = train_epoch(parts, data, recipe, epoch, augment, generator, display, position, pause)
            position = Position()
            own = team.part(len(data.val_images))
            validated = evaluate(
                parts.delivered, data.val_images, data.val_labels, normalize=prepare, device=device, part=own
            )
            validated = team.mean_of(validated, own.stop - own.start)
            stop_unless_finite(validated["loss"], epoch, recipe)
            metrics = {"stage": stage, "epoch": epoch} | trained | {f"val_{k}": v for k, v in validated.items()}
            metrics |= {
                "learning_rate": parts.optimiser.param_groups[0]["lr"],
                "seconds": time.perf_counter() - started,
            }

            stopped = team.lead(lambda: bool(hook and hook.epoch_end(parts.model, epoch, metrics)))  # noqa: B023
            finished = bool(team.tell(stopped)) or epoch == recipe.epochs
            history.append(metrics)
            save(position, finished)
            team.lead(lambda: on_epoch(metrics))  # noqa: B023
            display.epoch(metrics)
            if not finished:
                if team.any(stopping.due):
                    stopping.stop_with_others()
                stopping.check()

    if parts.average is not None:
        parts.model.load_state_dict(parts.delivered.state_dict())
    lay_out_model(parts.model, torch.contiguous_format)
    parts.model.eval()
    return history


def _call_after_steps(optimiser: torch.optim.Optimizer, hook: StepHook, model: nn.Module) -> None:
    def step_end(stepped: torch.optim.Optimizer, *_: Any) -> None:
        hook.step_end(model, stepped.param_groups[0]["lr"])

    optimiser.register_step_post_hook(step_end)


def _refuse_small_parts(team: Team, recipe: Recipe, images: int) -> None:
    batch = min(recipe.batch_size, images)
    if team.size > 1 and batch < 2 * team.size * recipe.accumulate:
        needed = 2 * team.size * recipe.accumulate
        raise ConfigError(
            f"training recipe: {team.size} processes with {recipe.accumulate} piece(s) each cannot share out a step's "
            f"{batch} images, since a piece needs two; give a batch_size of {needed} or more."
        )


def _on_device(data: LabelledImages, device: torch.device) -> LabelledImages:
    train, val = (images.to(device) for images in (data.train_images, data.val_images))
    return _Images(train, data.train_labels.to(device), val, data.val_labels.to(device))
