"""What a network and its pruned runs are in every runtime, float32 and int8: accuracy, bytes, latency.

    python benchmarks/deployment.py runs/resnet20-half runs/resnet20-quarter

writes docs/results/deployment/NETWORK.json: the dense network of the first run and the small one of each, written as
`prunus export --int8` does, run on all test images in their own runtimes, and timed as `prunus bench` does, all files
of a runtime in turn. scripts/deployment_table makes the tables of docs/deployment.md from it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prunus
from prunus.config import load_config
from prunus.deploy import FORMATS, Exported, bench_files, export_each, find_format, processor_name
from prunus.errors import ConfigError, PrunusError
from prunus.files import atomic_write_json
from prunus.pipeline.run_folder import RunFolder
from prunus.pipeline.subjects import Subject, find_subject

ROOT = Path(__file__).resolve().parent.parent
RUNTIMES = {found.runtime: name for name, found in FORMATS.items() if found.write}
"""Runtimes, and the format that a network is written in for each."""


@dataclass(frozen=True)
class Written:
    """A file of one of the networks: "dense", or the run's budget."""

    budget: str
    exported: Exported


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the file; 2 for an argument that cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished run folders of one network, the largest first")
    parser.add_argument("--runtimes", nargs="+", default=["ort", "executorch", "ncnn", "torch"], choices=RUNTIMES)
    parser.add_argument("--samples", type=int, help="test images at most (default: all)")
    parser.add_argument("--calls", type=int, default=300, help="timed calls of each file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "deployment")
    arguments = parser.parse_args(argv)
    try:
        results = measure(arguments)
    except PrunusError as error:
        print(f"deployment: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out / f"{results['network']}.json", results)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write, compare and time all files."""
    for runtime in arguments.runtimes:
        find_format(RUNTIMES[runtime])
    subjects = {"dense": find_subject(str(arguments.runs[0]), dense=True, count=arguments.samples)}
    labels = labels_of(arguments.runs)
    for run in arguments.runs:
        subjects[labels[run]] = find_subject(str(run), count=arguments.samples)
    names = {subject.info.model for subject in subjects.values()}
    if len(names) > 1 or len(subjects) <= len(arguments.runs):
        raise ConfigError("the runs must be of one network, with a budget, or branches left out, of its own each")
    for run, subject in zip(arguments.runs, list(subjects.values())[1:], strict=True):
        if subject.samples is None:
            raise ConfigError(f"{run}: {subject.note or 'there are no test images'}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for runtime in arguments.runtimes:
            written = [
                file for budget, subject in subjects.items() for file in write(budget, subject, runtime, Path(place))
            ]
            rows += timed(written, runtime, arguments)
    return {
        "network": names.pop(),
        "data": Path(str(load_config(RunFolder(arguments.runs[0]).config).data)).name,
        "test_images": len(subjects["dense"].samples or ()),
        "processor": processor_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "prunus": prunus.__version__,
        "threads": arguments.threads,
        "batch": arguments.batch,
        "calls": arguments.calls,
        "runs": [how_made(run, labels[run]) for run in arguments.runs],
        "rows": rows,
    }


def budget_of(run: Path) -> str:
    """Say what a run was to keep: "0.5 MACs"."""
    config = load_config(RunFolder(run).config)
    for name, unit in (("macs", "MACs"), ("size", "size"), ("params", "parameters")):
        kept = getattr(config, name)
        if kept is not None:
            return f"{kept} {unit}"
    return f"{config.pruning_ratio} of the channels pruned"


def labels_of(runs: Sequence[Path]) -> dict[Path, str]:
    """Call every run by its budget; those of the same budget by how many branches they left out, too."""
    budgets = {run: budget_of(run) for run in runs}
    several = {budget for budget, times in Counter(budgets.values()).items() if times > 1}
    return {
        run: f"{budget}, {len(RunFolder(run).read_branches())} branches out" if budget in several else budget
        for run, budget in budgets.items()
    }


def how_made(run: Path, label: str) -> dict[str, Any]:
    """Say what a run did: its budget, multiple of channels, fine-tuning and the branches that it left out."""
    config = load_config(RunFolder(run).config)
    return {
        "budget": label,
        "round_to": config.round_to,
        "finetune_epochs": config.finetune_epochs,
        "distill": config.distill,
        "dropped_branches": [row["name"] for row in RunFolder(run).read_branches()],
    }


def write(budget: str, subject: Subject, runtime: str, place: Path) -> list[Written]:
    """Write a network for a runtime, with 8-bit integers too where it has them; every file is compared with PyTorch."""
    name = RUNTIMES[runtime]
    print(f"{budget}: {name}", file=sys.stderr)
    files = export_each(
        subject.model,
        place / budget.replace(" ", "-").replace("/", "-"),
        [name],
        subject.info,
        samples=subject.samples,
        int8=FORMATS[name].write_int8 is not None,
        calibration=subject.calibration,
    )
    return [Written(budget, exported) for exported in files]


def timed(written: Sequence[Written], runtime: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the files of a runtime in turn, and say all that is known of each."""
    named = {f"{file.budget}, {file.exported.info.precision}": file for file in written}
    benched = bench_files(
        {name: file.exported.files for name, file in named.items()},
        threads=arguments.threads,
        batch=arguments.batch,
        runs=arguments.calls,
        memory=False,
    )
    return [
        {
            "budget": named[row.name].budget,
            "runtime": runtime,
            "version": row.runtime,
            "precision": row.precision,
            "accuracy": named[row.name].exported.comparison.accuracy,
            "torch_accuracy": named[row.name].exported.comparison.torch_accuracy,
            "same_class": named[row.name].exported.comparison.agreement,
            "size_bytes": row.size_bytes,
            "median_ms": row.median_ms,
            "p10_ms": row.p10_ms,
            "p90_ms": row.p90_ms,
            "params": row.params,
            "macs": row.macs,
        }
        for row in benched
    ]


if __name__ == "__main__":
    sys.exit(main())
