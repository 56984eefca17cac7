"""The fields of a run's configuration that say what is made how small."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from prunus.config.fields import Limit, Whole, flag


class WhatFields(BaseModel):
    """What is made small, by which method, and where the run lies."""

    model: str = flag(
        ..., "What", "NAME", "Network of the zoo, e.g. resnet20, vgg16_bn, mobilenetv2.", "resnet20", min_length=1
    )
    data: str = flag(
        ...,
        "What",
        "NAME|PATH",
        "digits, cifar10, cifar100, or the path of an image folder or archive.",
        "digits",
        min_length=1,
    )
    image_size: Whole | None = flag(
        None,
        "What",
        "PIXELS",
        "Scale every image until it covers a square with this side, and take the middle. [default: as they are, all of "
        "one size]",
        "224",
        ge=4,
        le=1024,
    )
    method: Literal["refit-error", "channel-sparsity", "layer-fusion"] = flag(
        "refit-error",
        "What",
        "METHOD",
        "Train, prune and fine-tune, by what refitting cannot make up for (refit-error) or by a sparsity index "
        "(channel-sparsity), or search while training (layer-fusion).",
        "layer-fusion",
    )
    checkpoint: Path | None = flag(
        None,
        "What",
        "FILE",
        "Trained dense network (.safetensors) to start from, instead of training one.",
        "dense.safetensors",
    )
    out: Path | None = flag(
        None, "What", "FOLDER", "Run folder. [default: runs/<model>_<data>_<method>_<budget>]", "runs/a"
    )


class BudgetFields(BaseModel):
    """What the small network may cost; numbers stay as typed."""

    size: Limit | None = flag(
        None, "Budget", "BYTES", "At most this many bytes on disk (0.64MB = 640,000), or a fraction.", "0.64MB"
    )
    macs: Limit | None = flag(
        None, "Budget", "COUNT", "At most this many multiply-adds (20M), or a fraction of the dense ones.", "0.5"
    )
    params: Limit | None = flag(
        None, "Budget", "COUNT", "At most this many parameters (100k), or a fraction of the dense ones.", "0.4"
    )
    latency: Limit | None = flag(
        None,
        "Budget",
        "TIME",
        "At most this long for one image on one thread (2ms, 350us), or a fraction; timed here in --runtime.",
        "0.5",
    )
    pruning_ratio: Limit | None = flag(None, "Budget", "FRACTION", "Fraction of channels to remove.", "0.3")
