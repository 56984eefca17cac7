"""How a network is trained: plain data, checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prunus.errors import ConfigError

Schedule = Literal["one-cycle", "cosine", "multi-step", "constant"]
Optimizer = Literal["sgd", "muon"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of one training; dense_recipe and finetune_recipe have values that were tried out.

    Attributes:
        epochs: passes over the training images, 1 or more.
        batch_size: images a step; an incomplete last batch is left out (the order changes every epoch).
        learning_rate: the peak of the schedule.
        optimizer: "sgd", or "muon", which gives filters orthogonal steps (`prunus.training.muon`).
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: L2 penalty on weights; BatchNorm scales and all biases have none.
        schedule: after the warm-up, "one-cycle" falls in a straight line to 0, "cosine" along half a cosine to 0,
            "multi-step" to a tenth after half of the epochs and to a hundredth after three quarters (He 2016,
            arXiv:1512.03385), and "constant" stays.
        warmup_epochs: epochs, whole or not, in which the rate climbs in a straight line from 0; below `epochs`.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        crop_padding: pixels added around an image before a crop of the old size; for the `augment` that fit is given.
        flip: whether images are mirrored left to right at random; for `augment`.
        cutout: side of the square that is blanked, in pixels, 0 for none; for `augment`.
        mixup: α of mixup (Zhang 2018, arXiv:1710.09412), 0 for none: a batch is blended with itself in another order,
            its targets likewise, in shares from Beta(α, α); train_accuracy counts the heavier image.
        precision: "bfloat16" trains under autocast with float32 weights, "auto" does so where the hardware gains.
        distill: weight w of what the teacher says in the loss, in [0, 1]; 0 trains without a teacher.
        temperature: T > 0 at which teacher and student are compared (Hinton 2015, arXiv:1503.02531).
        ema: decay a step of the exponential moving average of the weights, in [0, 1); 0 for none. With it, the average
            is what is validated and what the training ends with.
        accumulate: pieces that a step's images are computed in, one after the other, in [1, batch_size / 2], for less
            memory. The gradient is that of the whole batch, but BatchNorm sees a piece at a time.
        sync_batchnorm: where several processes train, BatchNorm sees the images of all of them, not each its own.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    cutout: int = 0
    mixup: float = 0.0
    precision: Precision = "auto"
    distill: float = 0.0
    temperature: float = 4.0
    ema: float = 0.0
    accumulate: int = 1
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        """Report everything that is out of range at once."""
        problems = [
            f"{name} is {getattr(self, name)!r}, and must be {rule}"
            for name, rule, holds in (
                ("epochs", "1 or more", self.epochs >= 1),
                ("batch_size", "1 or more", self.batch_size >= 1),
                ("learning_rate", "above 0", 0 < self.learning_rate < float("inf")),
                ("optimizer", f"one of {', '.join(get_args(Optimizer))}", self.optimizer in get_args(Optimizer)),
                ("momentum", "in [0, 1)", 0 <= self.momentum < 1),
                ("weight_decay", "0 or more", 0 <= self.weight_decay < float("inf")),
                ("schedule", f"one of {', '.join(get_args(Schedule))}", self.schedule in get_args(Schedule)),
                ("warmup_epochs", f"in [0, {self.epochs})", 0 <= self.warmup_epochs < self.epochs),
                ("label_smoothing", "in [0, 1)", 0 <= self.label_smoothing < 1),
                ("crop_padding", "0 or more", self.crop_padding >= 0),
                ("cutout", "0 or more", self.cutout >= 0),
                ("mixup", "0 or more", 0 <= self.mixup < float("inf")),
                ("precision", f"one of {', '.join(get_args(Precision))}", self.precision in get_args(Precision)),
                ("distill", "in [0, 1]", 0 <= self.distill <= 1),
                ("temperature", "above 0", 0 < self.temperature < float("inf")),
                ("ema", "in [0, 1)", 0 <= self.ema < 1),
                (
                    "accumulate",
                    f"in 1..{max(1, self.batch_size // 2)}, so that a piece has two images",
                    1 <= self.accumulate <= max(1, self.batch_size // 2),
                ),
            )
            if not holds
        ]
        if problems:
            raise ConfigError("training recipe: " + "; ".join(problems))


def dense_recipe(epochs: int = 24, **changes: Any) -> Recipe:
    """Make the recipe for training a network from scratch: one cycle up to a high rate, the first fifth of it upwards.

    Any field of Recipe may be given as a keyword. The one-cycle schedule is Smith's (arXiv 1803.09820).
    """
    recipe = Recipe(epochs, learning_rate=0.2, schedule="one-cycle", warmup_epochs=0.2 * epochs)
    return dataclasses.replace(recipe, **changes)


def finetune_recipe(epochs: int = 10, **changes: Any) -> Recipe:
    """Make the recipe for training accuracy back after channels were removed: a short warm-up, then a cosine to 0.

    Any field of Recipe may be given as a keyword.
    """
    recipe = Recipe(epochs, learning_rate=0.05, schedule="cosine", warmup_epochs=min(1.0, 0.1 * epochs))
    return dataclasses.replace(recipe, **changes)
