"""Latency as a user of a small device meets it: one image, one thread, the median of many calls."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Latency:
    """Milliseconds a forward pass takes (median, and the 10th and 90th percentile), and where it was measured."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    batch: int
    runtime: str
    processor: str


def measure_latency(
    models: Mapping[str, nn.Module],
    example: Tensor | tuple[Tensor, ...],
    *,
    threads: int = 1,
    runs: int = 100,
    warmup: int = 10,
) -> dict[str, Latency]:
    """Time every model on `example`, in eval and inference mode, taking turns so that a slow moment hits all alike.

    Modes and the process's thread count are put back afterwards.

    Args:
        models: name → network, all on the device of `example`.
        example: the input, or a tuple of the inputs; its first axis is the batch (1 for latency in the usual sense).
        threads: CPU threads within an operator.
        runs: timed calls of each model, at least 1.
        warmup: calls of each model before the clock counts.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    times: dict[str, list[float]] = {name: [] for name in models}
    with _quiet(models.values(), threads), torch.inference_mode():
        for turn in range(-warmup, runs):
            for name, model in models.items():
                elapsed = _time_once(model, inputs)
                if turn >= 0:
                    times[name].append(elapsed)
    runtime = f"PyTorch {torch.__version__}"
    processor = processor_name(inputs[0].device)
    batch = inputs[0].shape[0]
    return {
        name: Latency(*percentiles(taken), runs, threads, batch, runtime, processor) for name, taken in times.items()
    }


def processor_name(device: torch.device | str = "cpu") -> str:
    """Name the processor behind `device` as its maker does, as far as the system tells."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _time_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    model(*inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)  # a CUDA call returns before its work is done
    return (time.perf_counter() - start) * 1000.0


def percentiles(taken: list[float]) -> tuple[float, float, float]:
    """Return the median, the 10th and the 90th percentile."""
    p10, median, p90 = (round(float(value), 4) for value in np.percentile(taken, (10, 50, 90)))
    return median, p10, p90


@contextmanager
def _quiet(models: Iterable[nn.Module], threads: int) -> Iterator[None]:
    """Put models in eval mode and the process on `threads` threads, for a while."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        torch.set_num_threads(before)
        for module, training in modes:
            module.training = training
