#!/usr/bin/env python3
"""Compare what accuracy is left by Prunus' methods, by controls and by Torch-Pruning, from one dense checkpoint.

    python benchmarks/accuracy.py --networks resnet20=dense.safetensors --data cifar10-jpeg.tar.xz --seeds 0 1

Every cell (network, share of the MACs, method, seed, with or without distillation) is one JSON file in
docs/results/accuracy; those that are there are left out, so that the same command goes on where the last one stopped,
also within a training. scripts/accuracy_table writes docs/results.md from them. Several of these commands, or --jobs,
may work on the same folder at once. Decisions look at held-out training images alone; the test set is read once a cell.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from accuracy_cell import Cell, Settings
from accuracy_methods import EXTRAS, METHODS, PARTS, find_method
from accuracy_run import Run

import prunus
from prunus.errors import PrunusError
from prunus.files import atomic_write_json, read_json

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("A", "B-widths", "l1_norm", "tp_magnitude", "tp_group", "B-energy", "B", "refit", "refit-widths")
THEN = ("refit-dynamic", "B-energy-dynamic", "dense_longer", "random", "scratch")
LAST = ("scratch_e",)
RATES = (0.02, 0.05, 0.1, 0.2)
VALIDATION, SPLIT_SEED = 0.1, 0  # as the dense networks were trained


class OutOfTimeError(Exception):
    """--max-minutes are over; what is done is on the disk."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 where all of it is done, 1 where a cell failed, 2 for a wrong argument, 3 out of time."""
    arguments = read_arguments(argv)
    signal.signal(signal.SIGTERM, _stop)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.jobs == 1:
        return work(arguments)
    prunus.load_data(arguments.data)  # once, into the cache
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    workers = [context.Process(target=_work_and_exit, args=(arguments,)) for _ in range(arguments.jobs)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except SystemExit:
        for worker in workers:
            worker.terminate()
        raise
    return max((worker.exitcode or 0) % 256 for worker in workers)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line; an error ends the program with 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", required=True, metavar="NAME=FILE", help="trained by prunus compress")
    parser.add_argument("--data", required=True, help="an image archive or folder, or the name of a data set")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.35, 0.5, 0.2], help="shares of the MACs to keep")
    parser.add_argument("--methods", nargs="+", default=[*FIRST, *THEN, *LAST], help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--finetune-epochs", type=int, default=4)
    parser.add_argument("--dense-epochs", type=int, default=30, help="that the dense network had, for scratch_e")
    parser.add_argument("--distill", action="store_true", help="also with distillation from the dense network")
    parser.add_argument(
        "--ablate", metavar="METHOD", help="also leave out parts of this method, or add some, one at a time"
    )
    parser.add_argument("--ablate-macs", type=float, default=0.35)
    parser.add_argument("--calibration", type=int, default=2048, help="training images that the recovery looks at")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="peak learning rates to choose from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes that each work on a cell of their own")
    parser.add_argument("--max-minutes", type=float, help="stop at the first checkpoint after so long")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "accuracy")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "accuracy", help="what is not finished yet")
    arguments = parser.parse_args(argv)
    arguments.started = time.time()
    pairs = [text.partition("=") for text in arguments.networks]
    arguments.networks = {name: Path(file) for name, _, file in pairs}
    try:
        for name in [*arguments.methods, *([arguments.ablate] if arguments.ablate else [])]:
            find_method(name)
        for file in arguments.networks.values():
            prunus.load(file)
    except PrunusError as error:
        parser.error(str(error))
    return arguments


def order(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Give all cells, so that after any time the tables say as much as they can: first seed, main budget, main rows."""
    for network in arguments.networks:
        yield Cell(network, None, "dense")
        for distilled in (False, True) if arguments.distill else (False,):
            for seed in arguments.seeds:
                for names in (FIRST, THEN):
                    yield from _block(arguments, network, names, seed, distilled)
        if arguments.ablate:
            for seed in arguments.seeds:
                for change in (*(f"without-{part}" for part in PARTS), *(f"with-{extra}" for extra in EXTRAS)):
                    yield Cell(network, arguments.ablate_macs, f"{arguments.ablate}-{change}", seed, arguments.distill)
        for seed in arguments.seeds:
            yield from _block(arguments, network, LAST, seed, False)


def _block(
    arguments: argparse.Namespace, network: str, names: Sequence[str], seed: int, distilled: bool
) -> Iterator[Cell]:
    names = [name for name in names if name in arguments.methods]
    for number, macs in enumerate(arguments.budgets):
        for name in names:
            kind = METHODS[name].kind
            if kind == "dense" and number == 0:
                yield Cell(network, None, name, seed, distilled)
            elif kind != "dense" and not (kind == "scratch" and distilled):
                yield Cell(network, macs, name, seed, distilled)


def work(arguments: argparse.Namespace) -> int:
    """Go through the cells, and do those that are neither there nor in another process's hands."""
    torch.set_num_threads(arguments.threads)
    data = prunus.load_data(arguments.data)
    settings = Settings(
        data=data,
        split=data.split(VALIDATION, SPLIT_SEED),
        checkpoints=arguments.networks,
        work=arguments.work,
        finetune_epochs=arguments.finetune_epochs,
        dense_epochs=arguments.dense_epochs,
        calibration=arguments.calibration,
        device=torch.device(arguments.device),
        on_epoch=_Clock(arguments),
        flip=arguments.data != "digits",  # a mirrored 2 is no digit
        validation=VALIDATION,
        split_seed=SPLIT_SEED,
    )
    failed = 0
    for cell in order(arguments):
        file = arguments.out / f"{cell.name}.json"
        try:
            rate = learning_rate(arguments, settings, cell.network)
            with claimed(arguments.work / f"{cell.name}.lock") as mine:
                if mine and not finished(file, arguments.started):
                    settings.on_epoch.check()
                    failed += not _do(cell, settings, rate, file)
        except OutOfTimeError:
            say("out of time; the same command goes on from here")
            return 3
    return int(failed > 0)


def learning_rate(arguments: argparse.Namespace, settings: Settings, network: str) -> float:
    """Return the peak rate of all fine-tunes of a network: what leaves l1_norm, as removed, the best held-out accuracy.

    It is none of ours and takes no recovery step, so that the rate suits what is compared with Prunus.
    """
    file = arguments.out / f"{network}_learning-rate.json"
    with claimed(arguments.work / f"{file.stem}.lock", wait=True):
        if not file.exists():
            cell = Cell(network, arguments.budgets[0], "l1_norm-without-reconstruction")
            found: dict[str, float] = {}
            for rate in arguments.rates:
                settings.on_epoch.check()
                say(f"{network}: l1_norm with a learning rate of {rate:g}")
                own = dataclasses.replace(settings, work=settings.work / f"rate-{rate:g}")
                found[f"{rate:g}"] = Run(cell, own, rate).finetuned()
            chosen = max(found, key=lambda rate: found[rate])
            about = {"network": network, "macs": cell.macs, "method": cell.method, "seed": cell.seed}
            epochs = {"epochs": settings.finetune_epochs, "data": settings.data.name}
            atomic_write_json(file, {**about, **epochs, "held_out_accuracy": found, "chosen": float(chosen)})
    return float(read_json(file)["chosen"])


def finished(file: Path, since: float) -> bool:
    """Tell whether a cell is there; one that failed before this program started is tried again."""
    if not file.exists():
        return False
    return "failed" not in read_json(file) or file.stat().st_mtime >= since


def _do(cell: Cell, settings: Settings, rate: float, file: Path) -> bool:
    """Work on a cell and write its file; False where it failed, which stops no other."""
    say(f"{cell.name}: begins")
    begin = time.perf_counter()
    try:
        figures = Run(cell, settings, rate).finish()
    except OutOfTimeError:
        raise
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".replace(str(settings.work), "work")
        date = datetime.now(UTC).isoformat(timespec="seconds")
        atomic_write_json(file, {**dataclasses.asdict(cell), "failed": reason, "date": date})
        return False
    atomic_write_json(file, figures)
    for checkpoint in (settings.work / cell.name).glob("*.ckpt*"):
        checkpoint.unlink()
    steps = ", ".join(f"{step} {100 * value:.2f}" for step, value in figures["held_out_accuracy"].items())
    say(f"{cell.name}: {steps}; test {100 * figures['test_accuracy']:.2f}; {time.perf_counter() - begin:.0f} s")
    return True


class _Clock:
    """Tells of every epoch, and stops once the time is over; what was trained so far is in a checkpoint then."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        minutes = arguments.max_minutes
        self.end = float("inf") if minutes is None else arguments.started + 60 * minutes

    def __call__(self, cell: Cell, row: dict[str, Any]) -> None:
        say(f"{cell.name}: {row['stage']} {row['epoch']}: {100 * row['val_accuracy']:.2f} %, {row['seconds']:.0f} s")
        self.check()

    def check(self) -> None:
        """Raise OutOfTimeError where the time is over."""
        if time.time() > self.end:
            raise OutOfTimeError


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that ends with the process at the latest; False where another has it and `wait` is not asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)


def _work_and_exit(arguments: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(work(arguments))


def _stop(number: int, frame: object) -> NoReturn:
    """End by way of all `finally` blocks, so that no half-written file is left."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
