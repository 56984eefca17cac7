#!/usr/bin/env python3
"""What makes a file faster beside fewer MACs: BatchNorm folded, and widths in the multiples that a runtime likes.

    python benchmarks/alignment.py --networks resnet20 mobilenetv2_half --runtimes ort ncnn

For every network (He-initialised: the time does not depend on the weights) and runtime: the dense file without and with
BatchNorm folded, and networks of a share of the MACs whose widths are multiples of 1, 4, 8 and 16, all timed in turns.
Results go to docs/results/benchmarks/alignment.json; scripts/benchmark_table writes the table from it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.deploy import FORMATS, bench_files, processor_name
from prunus.errors import BudgetError
from prunus.files import atomic_write_json
from prunus.pipeline.environment import commit

ROOT = Path(__file__).resolve().parent.parent
RUNTIMES = {found.runtime: name for name, found in FORMATS.items() if found.write}
SHAPE = (3, 32, 32)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenetv2_half"])
    parser.add_argument("--runtimes", nargs="+", default=["ort", "ncnn"], choices=RUNTIMES)
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs")
    parser.add_argument("--multiples", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--criterion", default="l1_norm", help="one that looks at weights alone")
    parser.add_argument("--runs", type=int, default=300, help="timed calls of each file")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "alignment.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {name: networks(name, arguments) for name in arguments.networks}
    rows = [
        row for runtime in arguments.runtimes for name in found for row in timed(name, found[name], runtime, arguments)
    ]
    about = {key: getattr(arguments, key) for key in ("share", "criterion", "runs")}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_write_json(
        arguments.out, {"date": date, "commit": commit(), "processor": processor_name(), **about, "rows": rows}
    )
    return 0


def networks(name: str, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """Build a network and its pruned ones; a multiple that leaves no network within the budget is left out."""
    torch.manual_seed(0)
    model = prunus.build_model(name).eval()
    graph = prunus.trace(model, torch.zeros(1, *SHAPE))
    scores = prunus.score(model, graph, arguments.criterion, normalize="cost")
    made: dict[str, nn.Module] = {"dense": model}
    for multiple in arguments.multiples:
        try:
            plan = prunus.allocate(graph, scores, prunus.Budget(macs=arguments.share), round_to=multiple)
        except BudgetError as error:
            print(f"{name}, multiples of {multiple}: {error}", file=sys.stderr)
            continue
        made[f"multiples of {multiple}"] = prunus.remove(model, graph, plan)
    return made


def timed(name: str, made: dict[str, nn.Module], runtime: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Write every network for a runtime, the dense one without folding too, and time the files in turns."""
    with tempfile.TemporaryDirectory() as place:

        def written(what: str, model: nn.Module, *, fold: bool = True) -> tuple[Path, ...]:
            (file,) = prunus.export(
                model, Path(place) / what, [RUNTIMES[runtime]], input_shape=SHAPE, model_name=name, fold=fold
            )
            return file.files

        files = {"dense, not folded": written("unfolded", made["dense"], fold=False)}
        files |= {what: written(what, model) for what, model in made.items()}
        rows = bench_files(files, runs=arguments.runs, memory=False)
    dense = next(row for row in rows if row.name == "dense")
    print(f"{name}, {runtime}: " + ", ".join(f"{row.name} {row.median_ms:.3f} ms" for row in rows), flush=True)
    return [
        {
            "network": name,
            "runtime": runtime,
            "version": row.runtime,
            "file": row.name,
            "median_ms": row.median_ms,
            "p10_ms": row.p10_ms,
            "p90_ms": row.p90_ms,
            "faster": dense.median_ms / row.median_ms,
            "fewer_macs": (dense.macs or 0) / (row.macs or 1),
        }
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
