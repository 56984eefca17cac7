#!/usr/bin/env python3
"""Time `prunus.training.fit` beside a bare PyTorch loop: the ratio of their seconds, in turns, data in memory.

    python benchmarks/training.py                      ResNet-20 and VGG-16, one thread
    python benchmarks/training.py --networks resnet20 --turns 9 --device cuda

Both train one epoch of as many steps from the same weights, with the same batches, views, precision and memory format,
and validate once at its end; `fit` also does all else that it does: learning rates, metrics, the check of the loss, the
look whether to stop, and its own setting up. Without a folder it writes no checkpoint; what one costs is a figure of
its own. A busy machine's speed changes from second to second, so the two take turns step by step: each runs in a thread
of its own, and only while it is its turn does its clock. The goal is at most 5 % more.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import prunus
from prunus.data import augment, normalize
from prunus.deploy import processor_name
from prunus.files import atomic_write_json
from prunus.training import Recipe, fit
from prunus.training.checkpoint import Checkpoint, CheckpointStore, save_checkpoint
from prunus.training.hardware import choose_compute, lay_out_model

ROOT = Path(__file__).resolve().parent.parent
GOAL = 1.05
MEAN = STD = (0.5, 0.5, 0.5)
View = Callable[[Tensor, torch.Generator], Tensor]
STEPS = {"resnet20": 24, "vgg16_bn": 18}  # so that an epoch takes some seconds on one core
BATCH = {"resnet20": 128, "vgg16_bn": 32}
VALIDATION = 100


@dataclass(frozen=True)
class Images:
    """Random images of CIFAR-10's shape, as uint8 in memory."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, write its figures and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "vgg16_bn"], help="of the zoo")
    parser.add_argument("--turns", type=int, default=5, help="epochs of each kind (default: 5)")
    parser.add_argument("--steps", type=int, help="steps an epoch (default: 24, and 18 for VGG-16)")
    parser.add_argument("--batch-size", type=int, help="default: 128, and 32 for VGG-16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "training.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    rows = []
    for name in arguments.networks:
        steps = arguments.steps or STEPS.get(name, 10)
        rows.append(measure(name, steps, arguments.batch_size or BATCH.get(name, 64), arguments.turns, device))
    found = {
        "torch": torch.__version__,
        "device": processor_name(device),
        "threads": torch.get_num_threads(),
        "turns": arguments.turns,
        "goal": GOAL,
        "networks": rows,
    }
    atomic_write_json(arguments.out, found)
    print(json.dumps(found, indent=1))
    return 0


def measure(name: str, steps: int, batch_size: int, turns: int, device: torch.device) -> dict[str, object]:
    """Time epochs of the bare loop and of `fit` in turns."""
    torch.manual_seed(0)
    model = prunus.build_model(name)
    data = _images(steps * batch_size, device)
    recipe = Recipe(1, batch_size=batch_size, learning_rate=1e-3)
    view = functools.partial(augment, crop_padding=4, flip=True, cutout=0, mean=MEAN, std=STD)
    plain = functools.partial(normalize, mean=MEAN, std=STD)

    def ours(view: View) -> None:
        fit(copy.deepcopy(model), data, recipe, augment=view, normalize=plain, device=device, progress=False)

    def bare(view: View) -> None:
        bare_epoch(copy.deepcopy(model), data, recipe, view, plain, device)

    clocks = []
    for turn in track(range(turns + 1), f"{name} in turns", console=Console(stderr=True)):
        found = in_turns((bare, ours) if turn % 2 else (ours, bare), view, device)
        if turn:  # the first of each is not counted
            clocks.append(found if turn % 2 else found[::-1])
    loops, fitted = zip(*clocks, strict=True)
    wall, processor = (
        [_typical([getattr(clock, kind) for clock in side]) for side in (loops, fitted)]
        for kind in ("wall", "processor")
    )
    return {
        "network": name,
        "batch_size": batch_size,
        "steps": steps,
        "bare_seconds": round(wall[0], 4),
        "fit_seconds": round(wall[1], 4),
        "ratio": round(wall[1] / wall[0], 4),
        "processor_ratio": round(processor[1] / processor[0], 4),
        "all_ratios": [round(sum(fit.wall) / sum(loop.wall), 4) for loop, fit in clocks],
        "checkpoint_seconds": round(_checkpoint_seconds(model, device), 4),
    }


@dataclass
class Clock:
    """Seconds from each step to the next, on the wall and on the processor: setting up first, validation last."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def in_turns(trainings: Sequence[Callable[[View], None]], view: View, device: torch.device) -> list[Clock]:
    """Run trainings side by side, a step of each after the other, and return what each took; `view` begins a step."""
    clocks = [Clock() for _ in trainings]
    turns = [threading.Semaphore(int(number == 0)) for number in range(len(trainings))]
    left = [True for _ in trainings]
    errors: list[BaseException] = []

    def run(number: int) -> None:
        begin = [0.0, 0.0]

        def take_over() -> None:
            turns[number].acquire()
            begin[:] = time.perf_counter(), time.thread_time()

        def hand_on() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            clocks[number].wall.append(time.perf_counter() - begin[0])
            clocks[number].processor.append(time.thread_time() - begin[1])
            others = [*range(number + 1, len(trainings)), *range(number)]
            turns[next((other for other in others if left[other]), number)].release()

        def step(images: Tensor, generator: torch.Generator) -> Tensor:
            hand_on()
            take_over()
            return view(images, generator)

        torch.set_num_threads(1)  # each thread has a number of its own
        take_over()
        try:
            trainings[number](step)
        except BaseException as error:  # shown where the benchmark was started
            errors.append(error)
        left[number] = False
        hand_on()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(trainings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return clocks


def _typical(turns: Sequence[Sequence[float]]) -> float:
    """Add up the median, over the turns, of every part of an epoch."""
    return sum(statistics.median(parts) for parts in zip(*turns, strict=True))


def bare_epoch(
    model: nn.Module,
    data: Images,
    recipe: Recipe,
    view: View,
    plain: Callable[[Tensor], Tensor],
    device: torch.device,
) -> None:
    """Train an epoch and validate, as one writes it who wants nothing but speed."""
    model.to(device)
    compute = choose_compute(model, recipe.precision, device, plain(data.val_images[:2]))  # the same precision, layout
    lay_out_model(model, compute.memory_format)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    generator = torch.Generator(device).manual_seed(0)
    order = torch.randperm(len(data.train_images), generator=generator, device=device)
    model.train()
    for chosen in order.split(recipe.batch_size):
        batch = view(data.train_images[chosen], generator).contiguous(memory_format=compute.memory_format)
        with compute.autocast():
            logits = model(batch)
        loss = F.cross_entropy(logits.float(), data.train_labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.inference_mode():
        logits = model(plain(data.val_images).contiguous(memory_format=compute.memory_format))
        (logits.argmax(1) == data.val_labels).float().mean().item()


def _checkpoint_seconds(model: nn.Module, device: torch.device) -> float:
    """Return what writing one checkpoint takes, weights and momentum: the median of five."""
    model.to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "train.ckpt.safetensors", {}, model, optimiser, device)
        for _ in range(5):
            begin = time.perf_counter()
            save_checkpoint(store, Checkpoint())
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _images(count: int, device: torch.device) -> Images:
    generator = torch.Generator().manual_seed(0)

    def some(number: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return images.to(device), torch.randint(10, (number,), generator=generator).to(device)

    return Images(*some(count), *some(VALIDATION))


if __name__ == "__main__":
    sys.exit(main())
