#!/usr/bin/env python3
"""Time method B from random weights beside training the dense network for as many epochs, an epoch of each in turns.

    python benchmarks/dynamic_cost.py --data cifar10-jpeg.tar.xz      ResNet-20, some images, half the MACs, one thread
    python benchmarks/dynamic_cost.py --search-epochs 10 --finetune-epochs 20 --images 45000     the official CIFAR-10

Turns run from the end of an epoch to the end of the next; a last one holds what follows the last epoch.
The search's seconds are all of its: tracing, measuring, choosing, masking, removing, proving, training and validating;
the dense network's are training and validating. The search may find its structure early; the epochs that it saves are
trained after the removal, so that both sides train for the same number. The goal is a ratio below 1. Accuracies are of
the validation images after so few epochs on so few images: they say that both were trained, and no more.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import prunus
from prunus.cost import predict_cost
from prunus.data import Split, augment, load_data, normalize
from prunus.files import atomic_write_json
from prunus.methods import Choice, DynamicSearch
from prunus.training import Recipe, dense_recipe, finetune_recipe, fit

ROOT = Path(__file__).resolve().parent.parent
RATE = 0.1
GOAL = 1.0


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, write its figures and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet20", help="a network of the zoo (default: resnet20)")
    parser.add_argument("--data", default="cifar10", help="what `prunus compress --data` takes (default: cifar10)")
    parser.add_argument("--images", type=int, default=4000, help="training images (default: 4000)")
    parser.add_argument("--macs", default="0.5", help="the budget (default: 0.5)")
    parser.add_argument("--search-epochs", type=int, default=8)
    parser.add_argument("--finetune-epochs", type=int, default=8, help="and those that the search leaves")
    parser.add_argument("--remove-after", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "dynamic_cost.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measure(arguments)
    atomic_write_json(arguments.out, found)
    print(json.dumps(found, indent=1))
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Train both, each waiting while the other one works, and compare their seconds."""
    training = _Training(arguments)
    training.warm_up()
    turns = _Turns(("dense", "search"))
    threads = [
        threading.Thread(target=turns.work, args=(name, job))
        for name, job in (("dense", training.dense), ("search", training.search))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.error is not None:
        raise turns.error
    seconds = turns.seconds
    wall, processor = (
        {name: sum(took[which] for took in every) for name, every in seconds.items()} for which in (0, 1)
    )
    history = training.history
    searched = [row for row in history["search"] if "trained_macs" in row]
    return {
        "model": arguments.model,
        "data": training.data.name,
        "images": len(training.split.train_labels),
        "budget": {"macs": arguments.macs},
        "epochs": {name: len(rows) for name, rows in history.items()},
        "search_epochs": len(searched),
        "remove_after": arguments.remove_after,
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "seed": arguments.seed,
        "seconds": {name: round(took, 2) for name, took in wall.items()},
        "processor_seconds": {name: round(took, 2) for name, took in processor.items()},
        "ratio": round(wall["search"] / wall["dense"], 4),
        "processor_ratio": round(processor["search"] / processor["dense"], 4),
        "processor_ratio_by_epoch": [
            round(mine[1] / theirs[1], 3) for mine, theirs in zip(seconds["search"], seconds["dense"], strict=True)
        ],
        "trained_macs_by_search_epoch": [row["trained_macs"] for row in searched],
        "macs": training.macs,
        "validation_accuracy": {name: round(rows[-1]["val_accuracy"], 4) for name, rows in history.items()},
        "goal": GOAL,
    }


class _Turns:
    """Lets jobs work in turns, an epoch each; notes their seconds, (wall, processor), turn by turn."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = list(names)
        self.seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        self.error: BaseException | None = None
        self._whose = names[0]
        self._changed = threading.Condition()
        self._since = _clocks()

    def work(self, name: str, job: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
        """Do a job, which calls the function that it is given after every epoch."""
        self._wait(name)
        try:
            job(lambda _: self._next(name))
        except BaseException as error:
            self.error = error
        with self._changed:
            self._note(name)
            others = [other for other in self.names if other != name]
            self.names.remove(name)
            self._whose = others[0] if others else ""
            self._changed.notify_all()

    def _next(self, name: str) -> None:
        with self._changed:
            self._note(name)
            self._whose = self.names[(self.names.index(name) + 1) % len(self.names)]
            self._changed.notify_all()
        self._wait(name)

    def _note(self, name: str) -> None:
        wall, processor = (now - then for now, then in zip(_clocks(), self._since, strict=True))
        self.seconds[name].append((wall, processor))

    def _wait(self, name: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._whose == name)
            self._since = _clocks()


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _some(count: int, wanted: int, seed: int) -> Tensor:
    """Return so many of the numbers below `count`, drawn anew; archives may have their classes in a row."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]


class _Training:
    """The two trainings on the same images."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.data = load_data(arguments.data)
        self.split = self.data.split(0.1, arguments.seed)
        train = _some(len(self.split.train_labels), arguments.images, arguments.seed)
        held = _some(len(self.split.val_labels), arguments.images // 8, arguments.seed)
        self.split = Split(
            self.split.train_images[train],
            self.split.train_labels[train],
            self.split.val_images[held],
            self.split.val_labels[held],
        )
        self.normalize = functools.partial(normalize, mean=self.data.mean, std=self.data.std)
        self.epochs = arguments.search_epochs + arguments.finetune_epochs
        self.console = Console(stderr=True)
        self.history: dict[str, list[dict[str, Any]]] = {"dense": [], "search": []}
        self.macs: dict[str, int] = {}

    def warm_up(self) -> None:
        """Take a few steps that do not count: what torch does at first belongs to neither."""
        few = Split(*(part[:256] for part in vars(self.split).values()))
        self._fit("", self._build(), dense_recipe(1, batch_size=128, warmup_epochs=0), lambda _: None, images=few)

    def dense(self, after_epoch: Callable[[dict[str, Any]], None]) -> None:
        """Train the dense network for all epochs."""
        recipe = dense_recipe(self.epochs, learning_rate=RATE, batch_size=self.arguments.batch_size)
        self._fit("dense", self._build(), recipe, after_epoch)

    def search(self, after_epoch: Callable[[dict[str, Any]], None]) -> None:
        """Search from random weights, remove, and train for the epochs that are left."""
        arguments = self.arguments
        model, inputs = self._build(), self._inputs()
        graph = prunus.trace(model, inputs)
        whole = predict_cost(graph, graph.keep_all())
        hook = DynamicSearch(
            graph,
            whole,
            prunus.Budget(macs=arguments.macs),
            Choice("delivered_energy", calibration=self._calibration()),
            ramp_epochs=max(1, round(0.6 * arguments.search_epochs)),
            remove_after=arguments.remove_after,
            inputs=inputs,
        )
        common = {"batch_size": arguments.batch_size}
        recipe = finetune_recipe(arguments.search_epochs, learning_rate=RATE, schedule="constant", **common)
        self._fit("search", model, recipe, after_epoch, hook)
        removal = hook.finish(inputs)
        removal.check()
        self.macs = {"dense": whole.macs, "pruned": removal.plan.after.macs}
        left = self.epochs - len(self.history["search"])
        self._fit("search", removal.model, finetune_recipe(left, **common), after_epoch)

    def _calibration(self) -> list[Tensor]:
        """Return images for the choices: as large a part of an epoch as the default, 1,024, is of CIFAR-10's."""
        count = max(2, round(1024 / 45_000 * len(self.split.train_images)))
        return list(self.normalize(self.split.train_images[:count]).split(64))

    def _fit(
        self,
        name: str,
        model: nn.Module,
        recipe: Recipe,
        after_epoch: Callable[[dict[str, Any]], None],
        hook: DynamicSearch | None = None,
        images: Split | None = None,
    ) -> None:
        def record(row: dict[str, Any]) -> None:
            if images is not None:
                return
            rows = self.history[name]
            rows.append(row)
            self.console.print(f"{name} {len(rows)}/{self.epochs}: {row['seconds']:.1f} s", highlight=False)
            after_epoch(row)

        mean, std = self.data.mean, self.data.std
        changed = functools.partial(augment, crop_padding=4, flip=True, cutout=0, mean=mean, std=std)
        fit(
            model,
            images or self.split,
            recipe,
            augment=changed,
            normalize=self.normalize,
            seed=self.arguments.seed,
            hook=hook,
            on_epoch=record,
            progress=False,
        )

    def _build(self) -> nn.Module:
        torch.manual_seed(self.arguments.seed)
        channels = self.split.train_images.shape[1]
        return prunus.build_model(self.arguments.model, num_classes=len(self.data.classes), in_channels=channels)

    def _inputs(self) -> Tensor:
        return self.normalize(self.split.val_images[:8])


if __name__ == "__main__":
    sys.exit(main())
