"""Exported files timed side by side: taking turns in one process, so that a slow moment hits all alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunus.deploy.formats import open_exported
from prunus.deploy.latency import percentiles, processor_name
from prunus.deploy.runner import Array, Runner
from prunus.errors import ConfigError, FileFormatError

_LONGEST_S = 600


@dataclass(frozen=True)
class BenchRow:
    """What a file takes: milliseconds for one batch, bytes on disk, bytes of memory, MACs of one image.

    `peak_memory_bytes` is how far the process's resident memory rises above what it is with the runtime loaded, in a
    process of its own, while the file is opened and run; None where the system does not tell. `speedup` and
    `macs_reduction` compare with the first file in the same runtime.
    """

    name: str
    format: str
    precision: str
    runtime: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    batch: int
    size_bytes: int
    peak_memory_bytes: int | None
    params: int | None
    macs: int | None
    speedup: float
    macs_reduction: float | None
    processor: str


def bench_files(
    files: Mapping[str, Sequence[Path]],
    *,
    threads: int = 1,
    batch: int = 1,
    runs: int = 100,
    warmup: int = 10,
    memory: bool = True,
) -> list[BenchRow]:
    """Time files in their own runtimes, one call of each in turn, on noise.

    A file that is fixed to fewer images runs a batch piece by piece.

    Args:
        files: what to call each, and its files, the one to open first.
        threads: CPU threads within an operator.
        batch: images a call.
        runs: timed calls of each file, at least 1.
        warmup: calls of each before the clock counts.
        memory: measure the peak of memory as well, which opens every file in a process of its own.

    Raises:
        FileFormatError: a file cannot be opened.
        ConfigError: its runtime is not installed.
    """
    if not files:
        raise ConfigError("name a run folder or exported files to time; see prunus bench --help")
    runners = {name: open_exported(parts[0], threads) for name, parts in files.items()}
    times = time_in_turns(runners, batch, runs, warmup)
    first: dict[str, str] = {}
    rows = []
    for name, runner in runners.items():
        base = first.setdefault(runner.runtime, name)
        median, p10, p90 = percentiles(times[name])
        ours, theirs = runner.info.macs, runners[base].info.macs
        rows.append(
            BenchRow(
                name=name,
                format=runner.info.format,
                precision=runner.info.precision,
                runtime=runner.runtime,
                median_ms=median,
                p10_ms=p10,
                p90_ms=p90,
                runs=runs,
                threads=threads,
                batch=batch,
                size_bytes=sum(part.stat().st_size for part in files[name]),
                peak_memory_bytes=peak_memory(files[name][0], threads, batch) if memory else None,
                params=runner.info.params,
                macs=ours,
                speedup=percentiles(times[base])[0] / median,
                macs_reduction=theirs / ours if ours and theirs else None,
                processor=processor_name(),
            )
        )
    return rows


def time_in_turns(runners: Mapping[str, Runner], batch: int, runs: int, warmup: int) -> dict[str, list[float]]:
    """Call every runner once a turn, and return the milliseconds of each timed call."""
    inputs = {name: noise(runner.info.input_shape, batch) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(-warmup, runs):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner(inputs[name])
            elapsed = (time.perf_counter() - start) * 1000.0
            if turn >= 0:
                times[name].append(elapsed)
    return times


def noise(input_shape: tuple[int, ...], batch: int) -> Array:
    """Make a batch of Gaussian noise, always the same."""
    return np.random.default_rng(0).standard_normal((batch, *input_shape), dtype=np.float32)


def peak_memory(file: Path, threads: int = 1, batch: int = 1) -> int | None:
    """Return by how many bytes a process's memory rises at most while it opens a file and runs it; see BenchRow."""
    command = [sys.executable, "-m", "prunus.deploy.peak_memory", str(file), str(threads), str(batch)]
    done = subprocess.run(command, capture_output=True, timeout=_LONGEST_S, check=False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FileFormatError(f"{file} cannot be run in a process of its own: {reason}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found if isinstance(found, int) else None
