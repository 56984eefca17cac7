"""Which options of the sparsity index keep the most accuracy: degree, threshold t and λ, tried on held-out images.

    python benchmarks/sparsity_options.py dense.safetensors cifar10-jpeg.tar.xz

writes docs/results/benchmarks/sparsity_options.json: at every budget, the accuracy after the removal and a
recalibration of BatchNorm (or a reconstruction), before any training, on held-out training images; one row a point of
the grid of `prunus.choose_options`, best first.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import prunus
from prunus.data import normalize
from prunus.deploy import read_header
from prunus.errors import PrunusError
from prunus.files import atomic_write_json
from prunus.training import evaluate

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the file; 2 for an argument that cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a dense network, written by prunus.save")
    parser.add_argument("data", help="an image archive or folder, or the name of a data set")
    parser.add_argument("--macs", nargs="+", type=float, default=(0.5, 0.35), help="fractions of the MACs to keep")
    parser.add_argument("--recover", choices=("recalibrate", "reconstruct"), default="recalibrate")
    parser.add_argument("--calibration", type=int, default=1024, help="training images for activations and BatchNorm")
    parser.add_argument("--held-out", type=int, default=2000, help="images of the held-out part to evaluate on")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images that is held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "sparsity_options.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        results = measure(arguments)
    except PrunusError as error:
        print(f"sparsity_options: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, results)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Try the grid at every budget."""
    data = prunus.load_data(arguments.data)
    split = data.split(arguments.validation, arguments.seed)
    prepare = functools.partial(normalize, mean=data.mean, std=data.std)
    model = prunus.load(arguments.checkpoint).eval()
    images = prepare(_spread(split.train_images, arguments.calibration))
    held_out = (
        prepare(_spread(split.val_images, arguments.held_out)),
        _spread(split.val_labels, arguments.held_out),
    )
    graph = prunus.trace(model, images[:2])
    rows: list[dict[str, Any]] = []
    evaluated: dict[str, int] = {}
    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as progress:
        for macs in arguments.macs:
            task = progress.add_task(f"{macs:g} of the MACs", total=1)
            choice = prunus.choose_options(
                model,
                graph,
                prunus.Budget(macs=macs),
                "channel_sparsity",
                calibration=images,
                held_out=held_out,
                recover=arguments.recover,
                progress=lambda done, of, task=task: progress.update(task, completed=done, total=of),  # type: ignore[misc]
            )
            rows += [{"budget": {"macs": macs}, **point.to_dict()} for point in choice.ranking]
            evaluated[f"{macs:g}"] = choice.evaluated
            for point in choice.ranking:
                shown = ", ".join(f"{name} {value}" for name, value in point.options.items())
                progress.console.print(f"{macs:g}: {100 * point.accuracy:.2f} % with {shown}", highlight=False)
    return {
        "network": read_header(arguments.checkpoint).model,
        "data": data.name,
        "held_out_images": len(held_out[1]),
        "calibration_images": len(images),
        "recovery": arguments.recover,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "versions": {"prunus": prunus.__version__, "torch": torch.__version__},
        "dense_accuracy": evaluate(model, *held_out, normalize=lambda batch: batch)["accuracy"],
        "plans_evaluated": evaluated,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }


def _spread(tensor: Tensor, count: int) -> Tensor:
    """Return at most so many entries, spread evenly."""
    return tensor[torch.linspace(0, len(tensor) - 1, min(count, len(tensor))).long()]


if __name__ == "__main__":
    sys.exit(main())
