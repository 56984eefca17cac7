"""What a removal costs before any training, and what recalibration, compensation and reconstruction give back.

    python benchmarks/recovery.py dense.safetensors cifar10-jpeg.tar.xz
    python benchmarks/recovery.py dense.safetensors cifar10-jpeg.tar.xz --fold --calibration 512

writes docs/results/benchmarks/recovery.json: the accuracy on the held-out part of the training images (a tenth of each
class; the seed decides which, as in `prunus compress`). The steps see training images alone, without labels. The second
command is about networks without BatchNorm: it is folded into the convolutions first; recovery_folded.json.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import prunus
from prunus.data import Split, normalize
from prunus.deploy import read_header
from prunus.errors import PrunusError
from prunus.files import atomic_write_json
from prunus.training import evaluate

ROOT = Path(__file__).resolve().parent.parent
CRITERIA = (
    "l1_norm",
    "fused_conv_bn",
    "channel_sparsity",
    "delivered_energy, data-free",
    "delivered_energy",
    "refit_error",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the file; 2 for an argument that cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a dense network, written by prunus.save")
    parser.add_argument("data", help="an image archive or folder, or the name of a data set")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA, help="names; a variance goes behind a comma")
    parser.add_argument("--macs", nargs="+", type=float, default=(0.5, 0.35), help="fractions of the MACs to keep")
    parser.add_argument("--calibration", type=int, default=1024, help="training images that the steps may look at")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images that is held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fold", action="store_true", help="fold BatchNorm into the convolutions before anything else")
    parser.add_argument("--out", type=Path, help="by default in docs/results/benchmarks")
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        name = "recovery_folded.json" if arguments.fold else "recovery.json"
        arguments.out = ROOT / "docs" / "results" / "benchmarks" / name
    torch.set_num_threads(arguments.threads)
    try:
        results = measure(arguments)
    except PrunusError as error:
        print(f"recovery: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, results)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every criterion at every budget."""
    data = prunus.load_data(arguments.data)
    split = data.split(arguments.validation, arguments.seed)
    bench = Bench(split, functools.partial(normalize, mean=data.mean, std=data.std))
    model = prunus.load(arguments.checkpoint).eval()
    if arguments.fold:
        model = fuse(model)
    chosen = torch.linspace(0, len(split.train_images) - 1, arguments.calibration).long()
    images = bench.normalize(split.train_images[chosen])
    dense = bench.accuracy(model)
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress:
        for criterion in arguments.criteria:
            for macs in arguments.macs:
                task = progress.add_task(f"{criterion} at {macs:g} of the MACs", total=1)
                found, seconds = bench.row(model, images, criterion, macs, Told(progress, task))
                rows.append({"criterion": criterion, "macs": macs, "accuracy": found, "seconds": seconds})
                shown = ", ".join(f"{step} {100 * accuracy:.2f}" for step, accuracy in found.items())
                progress.console.print(f"{criterion} {macs:g}: dense {100 * dense:.2f}, {shown}")
    return {
        "network": read_header(arguments.checkpoint).model,
        "data": data.name,
        "validation_images": len(split.val_labels),
        "calibration_images": arguments.calibration,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "versions": {"prunus": prunus.__version__, "torch": torch.__version__},
        "batchnorm_folded": arguments.fold,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "dense_accuracy": dense,
        "rows": rows,
    }


@dataclass(frozen=True)
class Told:
    """Tells a progress bar how many layers are refitted."""

    progress: Progress
    task: TaskID

    def __call__(self, done: int, of: int) -> None:
        """Show how many layers are done."""
        self.progress.update(self.task, completed=done, total=of)


@dataclass(frozen=True)
class Bench:
    """The held-out images, and how images become inputs."""

    split: Split
    normalize: Callable[[Tensor], Tensor]

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of held-out images that a network names right, in [0, 1]."""
        images, labels = self.split.val_images, self.split.val_labels
        return evaluate(model, images, labels, normalize=self.normalize)["accuracy"]

    def row(
        self, model: nn.Module, images: Tensor, criterion: str, macs: float, told: Callable[[int, int], None]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Prune once, and measure after every way to go on; seconds are those of the last step of each way."""
        found: dict[str, float] = {}
        seconds: dict[str, float] = {}
        last = time.perf_counter()
        for step, network in ways(model, images, criterion, macs, told):
            seconds[step] = round(time.perf_counter() - last, 2)
            found[step] = round(self.accuracy(network), 6)
            last = time.perf_counter()
        return found, seconds


def ways(
    model: nn.Module, images: Tensor, criterion: str, macs: float, told: Callable[[int, int], None]
) -> Iterator[tuple[str, nn.Module]]:
    """Give the pruned network, and what each step makes of it; recalibration only where there is BatchNorm."""
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    graph = prunus.trace(model, images[:2])
    name, _, variance = criterion.partition(", ")
    options = {"variance": variance} if variance else {}
    scores = prunus.score(model, graph, name, calibration=images, **options)
    plan = prunus.allocate(graph, scores, prunus.Budget(macs=macs))
    small = prunus.remove(model, graph, plan)
    yield "removed", small
    if has_norms:
        yield "recalibrated", prunus.recalibrate(small, images)
    compensated, _ = prunus.compensate(model, small, graph, plan, images)
    yield "compensated", compensated
    refitted, _ = prunus.reconstruct(model, small, graph, plan, images, progress=told)
    yield "reconstructed", refitted
    if has_norms:
        yield "reconstructed, recalibrated", prunus.recalibrate(refitted, images)


if __name__ == "__main__":
    sys.exit(main())
