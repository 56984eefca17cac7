#!/usr/bin/env python3
"""Time depthwise convolutions and lightweight networks in float32, in bfloat16, and as `prunus.training.fit` runs them.

    python benchmarks/depthwise.py

For a processor with instructions for bfloat16 (AVX-512 BF16, AMX): on others it is emulated, and `fit` leaves it alone.
Images lie in memory as channels_last. The ways take turns, a forward and a backward pass each, on one thread; figures
are the least processor time of all turns. It writes docs/results/benchmarks/depthwise.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import prunus
from prunus.deploy import processor_name
from prunus.files import atomic_write_json
from prunus.training.hardware import Compute, choose_compute

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "3×3": {"kernel_size": 3, "padding": 1},
    "3×3, stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "5×5": {"kernel_size": 5, "padding": 2},
    "3×3, dilation 2": {"kernel_size": 3, "padding": 2, "dilation": 2},
}
NETWORKS = ("mobilenetv2_half", "mobilenetv2", "shufflenetv2", "resnet20")
CHANNELS, SIDE = 48, 16  # of the single layers


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, write its figures and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of the zoo, or files written by prunus.save")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "depthwise.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measure(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, found)
    print(json.dumps(found, indent=1))
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time every layer and network."""
    torch.manual_seed(0)
    batch = arguments.batch_size
    inner = torch.randn(batch, CHANNELS, SIDE, SIDE)
    subjects: list[tuple[str, str, nn.Module, Tensor]] = [
        ("layers", name, nn.Conv2d(CHANNELS, CHANNELS, groups=CHANNELS, bias=False, **settings), inner)
        for name, settings in LAYERS.items()
    ]
    for name in arguments.networks:
        model = prunus.load(name) if Path(name).exists() else prunus.build_model(name)
        subjects.append(("networks", Path(name).stem, model, torch.randn(batch, 3, 32, 32)))
    rows: dict[str, list[dict[str, Any]]] = {"layers": [], "networks": []}
    for kind, name, model, images in track(subjects, console=Console(stderr=True)):
        rows[kind].append({"name": name, "milliseconds": times(model, images, arguments.turns)})
    return {
        "device": processor_name(torch.device("cpu")),
        "bfloat16_instructions": has_bfloat16(),
        "torch": torch.__version__,
        "prunus": prunus.__version__,
        "threads": 1,
        "batch_size": batch,
        "turns": arguments.turns,
        **rows,
    }


def has_bfloat16() -> bool:
    """Tell whether `fit` would choose bfloat16 here."""
    cpu, layer = torch.device("cpu"), nn.Conv2d(1, 1, 1)
    return choose_compute(layer, "auto", cpu, torch.zeros(1, 1, 1, 1)).bfloat16


def times(model: nn.Module, images: Tensor, turns: int) -> dict[str, float]:
    """Return the milliseconds of a training step's two passes, by the way of computing; the first turn warms up."""
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub has no such overload
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    cpu = torch.device("cpu")
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "float32": Compute(cpu, False, torch.channels_last).autocast,
        "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
        "fit": Compute(cpu, True, torch.channels_last).autocast,
    }
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(turns + 1):
        for way, context in ways.items():
            begin = time.process_time()
            with context():
                outputs = model(images)
            torch.autograd.backward(outputs.float().square().mean())
            if turn:
                least[way] = min(least[way], time.process_time() - begin)
    return {way: round(1000 * seconds, 3) for way, seconds in least.items()}


if __name__ == "__main__":
    raise SystemExit(main())
