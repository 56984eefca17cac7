#!/usr/bin/env python3
"""Time what `prunus.SoftPruner` adds to a training loop: the ratio of steps with it to steps without, in turns.

    python benchmarks/own_loop.py                 ResNet-20, batches of 128, one thread
    python benchmarks/own_loop.py --model mobilenetv2 --steps 20

A step is forward, backward and the optimiser's; with Prunus also `pruner.step`, with each penalty. `epoch_end` runs
once an epoch; its time is shared out over an epoch of as many steps as CIFAR-10 has. The goal is at most 3 % more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import prunus
from prunus.files import atomic_write_json

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 391  # steps: 50,000 images in batches of 128
GOAL = 1.03


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, write its figures and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet20", help="a network of the zoo (default: resnet20)")
    parser.add_argument("--steps", type=int, default=15, help="steps of each kind (default: 15)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "own_loop.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measure(arguments.model, arguments.steps, arguments.batch_size)
    atomic_write_json(arguments.out, found)
    print(json.dumps(found, indent=1))
    return 0


def measure(name: str, steps: int, batch_size: int) -> dict[str, object]:
    """Time steps without a pruner and with one of each kind in turns, and the choice at an epoch's end."""
    torch.manual_seed(0)
    model = prunus.build_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    kinds = {kind: _pruner(model, kind) for kind in (None, "bn_scale", "group_lasso")}
    seconds: dict[str, list[float]] = {}
    for turn in track(range(steps + 1), "steps in turns", console=Console(stderr=True)):
        for label, pruner in (("bare", None), *((f"penalty {kind}", p) for kind, p in kinds.items())):
            begin = time.perf_counter()
            _step(model, optimizer, images, labels)
            if pruner is not None:
                pruner.step(optimizer)
            if turn:  # the first of each is not counted
                seconds.setdefault(label, []).append(time.perf_counter() - begin)
    ends = []
    for _ in range(5):
        begin = time.perf_counter()
        kinds[None].epoch_end()
        ends.append(time.perf_counter() - begin)
    bare = statistics.median(seconds["bare"])
    share = statistics.median(ends) / EPOCH
    ratios = {
        label: round((statistics.median(found) + share) / bare, 4)
        for label, found in seconds.items()
        if label != "bare"
    }
    return {
        "model": name,
        "batch_size": batch_size,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "step_seconds": round(bare, 5),
        "epoch_end_seconds": round(statistics.median(ends), 5),
        "steps_per_epoch": EPOCH,
        "ratio": ratios,
        "goal": GOAL,
    }


def _pruner(model: nn.Module, penalty: str | None) -> prunus.SoftPruner:
    return prunus.SoftPruner(model, torch.zeros(2, 3, 32, 32), prunus.Budget(macs=0.5), penalty=penalty)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


if __name__ == "__main__":
    sys.exit(main())
