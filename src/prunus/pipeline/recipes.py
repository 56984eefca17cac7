"""How each stage trains: the user's settings, and what follows from the images."""

from __future__ import annotations

import dataclasses
from typing import Any

from prunus.pipeline.run import Run
from prunus.training import Recipe, dense_recipe, finetune_recipe


def dense(run: Run) -> Recipe:
    """Make the recipe of the dense training."""
    config = run.config
    warmup = {} if config.warmup_epochs is None else {"warmup_epochs": config.warmup_epochs}
    return dense_recipe(
        config.epochs,
        learning_rate=config.learning_rate,
        schedule=config.learning_rate_schedule,
        ema=config.ema,
        **warmup,
        **_shared(run),
    )


def sparse(run: Run) -> Recipe:
    """Make the recipe of the sparse training: that of a fine-tuning, without a teacher and without an average."""
    config = run.config
    return finetune_recipe(config.sparse_epochs, learning_rate=config.finetune_learning_rate, **_shared(run))


def search(run: Run) -> Recipe:
    """Make the recipe of the dynamic search: the rate stays up, so that channels can come back until the end.

    Weights are not averaged: an average would mix those of channels that were masked with those of the same channels
    when they were not.
    """
    config = run.config
    return finetune_recipe(
        config.search_epochs,
        learning_rate=config.learning_rate if config.from_scratch else config.finetune_learning_rate,
        schedule="constant",
        **_shared(run),
    )


def finetune(run: Run, epochs: int) -> Recipe:
    """Make the recipe of a training after channels were removed."""
    config = run.config
    return finetune_recipe(
        epochs,
        learning_rate=config.finetune_learning_rate,
        distill=config.distill,
        temperature=config.temperature,
        ema=config.ema,
        **_shared(run),
    )


def int8(run: Run) -> Recipe:
    """Make the recipe of a training with 8-bit integers simulated: small steps, since little is to be learnt.

    At a tenth of the fine-tuning's rate, a network whose channels had very different ranges was destroyed on the
    digits; at a 25th, 0.002 by default, it was trained back.
    """
    config = run.config
    recipe = finetune_recipe(
        config.int8_epochs,
        learning_rate=config.finetune_learning_rate / 25,
        distill=config.distill,
        temperature=config.temperature,
        **_shared(run),
    )
    return dataclasses.replace(recipe, precision="float32")  # as the file has it between its integers


def reinitialized(run: Run) -> Recipe:
    """Make the recipe of the small network with new weights: that of the dense training, with a teacher if asked."""
    return dataclasses.replace(dense(run), distill=run.config.distill, temperature=run.config.temperature)


def _shared(run: Run) -> dict[str, Any]:
    config = run.config
    side = min(run.input_shape[1:])
    return {
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "sync_batchnorm": config.sync_batchnorm,
        "optimizer": config.optimizer,
        "weight_decay": config.weight_decay,
        "label_smoothing": config.label_smoothing,
        "crop_padding": config.crop_padding if config.crop_padding is not None else side // 8,
        "flip": config.flip if config.flip is not None else config.data != "digits",  # a mirrored 2 is no digit
        "cutout": config.cutout or 0,
        "mixup": config.mixup,
        "precision": config.precision,
    }
