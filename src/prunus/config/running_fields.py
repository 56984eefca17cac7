"""The fields of a run's configuration that say where and how it is carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from prunus.config.fields import Real, Whole, flag

Runtime = Literal["ort", "executorch", "ncnn", "torch"]


class RunningFields(BaseModel):
    """Where and how a run is carried out."""

    seed: Whole = flag(0, "Running", "N", "Seed of every random choice.", "0", ge=0, lt=2**31)
    device: str = flag(
        "auto", "Running", "DEVICE", "cpu, cuda, cuda:1, or auto.", "cpu", pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$"
    )
    threads: Whole | None = flag(
        None, "Running", "N", "Threads on the CPU. [default: torch's own choice]", "2", ge=1, le=1024
    )
    precision: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "Running", "TYPE", "auto, float32 or bfloat16.", "float32"
    )
    compile: bool = flag(
        False,
        "Running",
        "",
        "Train through torch.compile, with CUDA graphs on a GPU; as it is where that fails.",
        "true",
    )
    sync_batchnorm: bool = flag(
        False, "Running", "", "Where several processes train, BatchNorm sees the images of all of them.", "true"
    )
    tracker: str | None = flag(
        None,
        "Running",
        "NAME",
        "Show the metrics in a tracker as well: tensorboard, wandb, mlflow, or another that accelerate knows.",
        "tensorboard",
        pattern=r"^[a-z_]{1,40}$",
    )
    runtime: Runtime | None = flag(
        None,
        "Running",
        "NAME",
        "Where latency is measured: ort (ONNX Runtime), executorch, ncnn or torch. [default: ort with --latency, "
        "--round-to auto or --normalize latency, torch without]",
        "ncnn",
    )
    skip_bad_images: bool = flag(
        False, "Running", "", "Leave unreadable images out, and count them, instead of stopping.", "true"
    )
    image_memory: Real | None = flag(
        None,
        "Running",
        "GB",
        "Decoded images beyond this stay on the disk, in the cache, and are read ahead of the training. [default: half "
        "of the memory]",
        "8",
        ge=0,
    )
    cache_dir: Path | None = flag(
        None, "Running", "FOLDER", "Where decoded data sets are kept. [default: the user's cache]", ".cache"
    )
