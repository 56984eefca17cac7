"""The fields of a run's configuration that say how networks are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from prunus.config.fields import Fraction, Real, Whole, flag
from prunus.config.recipes import Tier

Optimizer = Literal["sgd", "muon"]
Schedule = Literal["one-cycle", "cosine", "multi-step", "constant"]


class TrainingFields(BaseModel):
    """How networks are trained."""

    recipe: Tier | None = flag(
        None,
        "Training",
        "TIER",
        "Settings that suit the network: cpu (an hour or two on a few cores), standard (the literature's), strong (a "
        "GPU); whatever else is given wins. --print-config shows them.",
        "cpu",
    )
    epochs: Whole = flag(30, "Training", "N", "Epochs of dense training.", "30", ge=1, le=100_000)
    search_epochs: Whole = flag(
        15,
        "Training",
        "N",
        "Epochs of the search at most (layer-fusion); it stops earlier once the structure is stable.",
        "15",
        ge=1,
        le=100_000,
    )
    sparse_epochs: Whole = flag(
        0,
        "Training",
        "N",
        "Epochs of sparse training between the dense network and the removal (channel-sparsity); 0 is none.",
        "10",
        ge=0,
        le=100_000,
    )
    from_scratch: bool = flag(
        False,
        "Training",
        "",
        "Search from random weights, without a dense training (layer-fusion); a checkpoint is compared with only.",
        "true",
    )
    remove_after: Whole = flag(
        3,
        "Training",
        "N",
        "Epochs that a channel stays masked before it leaves the network that trains (layer-fusion); 0 for at the end.",
        "3",
        ge=0,
        le=100_000,
    )
    finetune_epochs: Whole = flag(
        15,
        "Training",
        "N",
        "Epochs after the removal; all rounds of an iterative schedule together.",
        "15",
        ge=0,
        le=100_000,
    )
    batch_size: Whole = flag(128, "Training", "N", "Images in a training step.", "128", ge=2, le=1_000_000)
    accumulate: Whole = flag(
        1,
        "Training",
        "N",
        "Pieces that a step's images are computed in, for less memory; BatchNorm sees a piece at a time.",
        "4",
        ge=1,
        le=500_000,
    )
    optimizer: Optimizer = flag(
        "sgd",
        "Training",
        "NAME",
        "sgd, or muon (Jordan et al. 2024): filters take orthogonal steps, and short trainings come further.",
        "muon",
    )
    learning_rate: Real = flag(
        0.2, "Training", "RATE", "Peak learning rate of the dense training.", "0.1", gt=0, le=100
    )
    learning_rate_schedule: Schedule = flag(
        "one-cycle",
        "Training",
        "SCHEDULE",
        "Of the dense training: one-cycle (in a straight line to 0), cosine, multi-step (a tenth after half and three "
        "quarters of the epochs) or constant.",
        "cosine",
    )
    warmup_epochs: Real | None = flag(
        None,
        "Training",
        "N",
        "Epochs in which the rate of the dense training climbs to its peak. [default: a fifth of them]",
        "3",
        ge=0,
        le=1000,
    )
    finetune_learning_rate: Real = flag(
        0.05,
        "Training",
        "RATE",
        "Peak learning rate of sparse training, the search and after the removal.",
        "0.02",
        gt=0,
        le=100,
    )
    weight_decay: Real = flag(5e-4, "Training", "X", "Weight decay, not on BatchNorm or biases.", "5e-4", ge=0, le=1)
    label_smoothing: Real = flag(0.0, "Training", "X", "Label smoothing.", "0.1", ge=0, lt=1)
    validation: Fraction = flag(
        0.1,
        "Training",
        "FRACTION|N",
        "Training images held out for every decision; the test set is read once, at the end.",
        "0.1",
        gt=0,
    )
    flip: bool | None = flag(None, "Training", "", "Mirror training images. [default: yes, except for digits]", "true")
    crop_padding: Whole | None = flag(
        None, "Training", "PIXELS", "Shift of training images. [default: 1/8 of the side]", "4", ge=0, le=64
    )
    cutout: Whole | None = flag(
        None, "Training", "PIXELS", "Side of the square cut out of training images. [default: none]", "8", ge=0, le=512
    )
    mixup: Real = flag(
        0.0,
        "Training",
        "ALPHA",
        "Blend every training image with another, in shares drawn from Beta(ALPHA, ALPHA).",
        "0.2",
        ge=0,
        le=10,
    )
    distill: Real = flag(
        0.0, "Training", "W", "Weight of the dense network's answers in the loss after the removal.", "0.5", ge=0, le=1
    )
    temperature: Real = flag(
        4.0, "Training", "T", "Temperature at which these answers are compared.", "4", gt=0, le=1000
    )
    ema: Real = flag(
        0.0,
        "Training",
        "DECAY",
        "Average the weights in the dense training and after the removal; 0.999 looks back about 1000 steps.",
        "0.999",
        ge=0,
        lt=1,
    )
    reinitialize: bool = flag(
        False,
        "Training",
        "",
        "Give the small network new weights and, in place of the fine-tuning, the dense one's training, --epochs long: "
        "Scratch-E, the control that tells what the structure alone is worth.",
        "true",
    )
    split_seed: Whole | None = flag(
        None,
        "Training",
        "N",
        "Seed of which images --validation holds out; give that of the run a --checkpoint is from. [default: --seed]",
        "0",
        ge=0,
        le=2**63 - 1,
    )
