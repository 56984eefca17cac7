#!/usr/bin/env python3
"""Time and weigh the way from a network to its smaller copy, side by side with Torch-Pruning.

    pip install '.[bench]'
    python benchmarks/analysis.py                 all tables, into docs/results/benchmarks/analysis.json
    scripts/benchmark_table                       write them into docs/benchmarks.md

Three tables, all on the CPU with one thread and with random weights, since only shapes matter:

speed    Prunus (`trace`, `score` by l1_norm, `allocate` with a pruning ratio of 0.5 over all layers, `remove`) against
         Torch-Pruning (`BasePruner(...)` with its L1 group magnitude, global_pruning, the same ratio, the classifier
         ignored; then `step()`). The two take turns run by run, and who begins takes turns too, so that what else the
         machine does hits both. Both get the same network and the same inputs. Prunus copies the network to be pruned,
         and that is timed; Torch-Pruning changes its own, so it gets a copy each time, which is not timed. Its
         constructor builds the dependency graph: `build` is that part, measured inside, `init` the rest, and the total
         counts each once. Prunus's proof (`verify`) has no counterpart and is in neither. A first, untimed run of both
         on a small network loads what they load late. The median of all runs counts.
scaling  Prunus alone on residual networks of more and more blocks, the sizes taking turns.
memory   The most memory that a fresh process holds during the same four steps, less what it held before them, when the
         network had been built (`memory.py`).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries that read it are loaded

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from networks import Inputs, build
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = (
    "timm:resnet50",
    "timm:resnet152",
    "timm:efficientnet_b0",
    "timm:mobilenetv2_100",
    "timm:convnext_tiny",
    "timm:regnety_032",
    "torchvision:googlenet",
    "torchvision:inception_v3",
    "timm:densenet201",
)
BLOCKS = (150, 300, 600, 1500)
RATIO = 0.5
GOALS = {"speed": 0.5, "speed of densenet201": 0.05, "time per size": 1.2, "memory_bytes": 200_000_000}

Seconds = dict[str, float]
Tool = Callable[[nn.Module, Inputs], tuple[Seconds, nn.Module]]


def run_prunus(model: nn.Module, inputs: Inputs) -> tuple[Seconds, nn.Module]:
    """Prune a copy of the network with Prunus, and time each step."""
    import prunus

    clock = [time.perf_counter()]
    graph = prunus.trace(model, inputs)
    clock.append(time.perf_counter())
    scores = prunus.score(model, graph, "l1_norm")
    clock.append(time.perf_counter())
    plan = prunus.allocate(graph, scores, prunus.Budget(pruning_ratio=RATIO), scope="global")
    clock.append(time.perf_counter())
    pruned = prunus.remove(model, graph, plan)
    clock.append(time.perf_counter())
    steps = dict(zip(("trace", "score", "plan", "remove"), map(_between, clock, clock[1:]), strict=True))
    return {"total": clock[-1] - clock[0], **steps}, pruned


def run_torch_pruning(model: nn.Module, inputs: Inputs) -> tuple[Seconds, nn.Module]:
    """Prune the network itself with Torch-Pruning, and time each step."""
    import torch_pruning as tp

    built = 0.0
    build_dependency = tp.DependencyGraph.build_dependency

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal built
        begin = time.perf_counter()
        graph = build_dependency(*args, **kwargs)
        built += time.perf_counter() - begin
        return graph

    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    with mock.patch.object(tp.DependencyGraph, "build_dependency", timed):
        begin = time.perf_counter()
        pruner = tp.pruner.BasePruner(
            model,
            inputs[0],
            importance=tp.importance.MagnitudeImportance(p=1),
            global_pruning=True,
            pruning_ratio=RATIO,
            ignored_layers=classifier,
            in_channel_groups={},  # its defaults are shared between all pruners, and fill up
            out_channel_groups={},
        )
        ready = time.perf_counter()
        pruner.step()
        end = time.perf_counter()
    return {"total": end - begin, "build": built, "init": ready - begin - built, "step": end - ready}, model


class Trials:
    """The runs of one tool on one network: their seconds, and what became of the network or the error."""

    def __init__(self, tool: Tool, *, copies: bool) -> None:
        self.tool = tool
        self.copies = copies
        self.runs: list[Seconds] = []
        self.facts: dict[str, Any] = {}

    def run(self, model: nn.Module, inputs: Inputs) -> None:
        """Run once more, with other libraries' warnings silent; a tool that has failed is not run again."""
        if "error" in self.facts:
            return
        subject = deepcopy(model) if self.copies else model
        gc.collect()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seconds, pruned = self.tool(subject, inputs)
        except Exception as error:
            self.facts = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
            return
        self.runs.append(seconds)
        self.facts = self.facts or {"params": count(pruned), "runs": _runs(pruned, inputs)}

    def row(self) -> dict[str, Any]:
        """Return the medians of the totals and of each step, and all totals in the order of the runs."""
        if "error" in self.facts:
            return self.facts
        steps = {key: round(statistics.median(run[key] for run in self.runs), 5) for key in self.runs[0]}
        everything = [round(run["total"], 5) for run in self.runs]
        return {**self.facts, "seconds": steps.pop("total"), "steps": steps, "all_seconds": everything}


def compare(spec: str, repeats: int, advance: Callable[[str], None]) -> dict[str, Any]:
    """Time both tools on one network, turn by turn."""
    model, inputs = build(spec)
    tools = {"prunus": Trials(run_prunus, copies=False), "torch_pruning": Trials(run_torch_pruning, copies=True)}
    for turn in range(repeats):
        for name in sorted(tools, reverse=turn % 2 == 1):
            advance(f"{spec}: {name}")
            tools[name].run(model, inputs)
    goal = GOALS.get(f"speed of {spec.rpartition(':')[2]}", GOALS["speed"])
    row = {"network": spec, "input": list(inputs[0].shape), "params": count(model), "goal": goal}
    return {**row, **{name: trials.row() for name, trials in tools.items()}}


def scale(sizes: Sequence[int], repeats: int, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """Time Prunus on residual networks of these numbers of blocks, turn by turn."""
    built = {size: build(f"residual:{size}") for size in sizes}
    trials = {size: Trials(run_prunus, copies=False) for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            advance(f"residual:{size}: prunus")
            trials[size].run(*built[size])
    return [
        {
            "blocks": size,
            "convolutions": 2 * size + 1,
            "params": count(built[size][0]),
            "goal": GOALS["time per size"],
            "prunus": trials[size].row(),
        }
        for size in sizes
    ]


def weigh_apart(spec: str) -> dict[str, Any]:
    """Measure the memory of one network in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve().with_name("memory.py")), spec]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"network": spec, "error": (done.stderr.strip().splitlines() or ["it was killed"])[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def count(model: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight(model: nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def versions() -> dict[str, str]:
    """Return the versions of everything that takes part."""
    names = ("torch", "torch-pruning", "timm", "torchvision", "numpy", "scipy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import prunus

    return {"python": platform.python_version(), "prunus": prunus.__version__, **found}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 where Prunus managed every network, 1 where it did not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS, metavar="MODEL", help="as for `prunus check`")
    parser.add_argument("--blocks", nargs="*", type=int, default=BLOCKS, help="sizes of the residual networks")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts (default: 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "analysis.json")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error("--repeats should be 1 or more")
    torch.set_num_threads(1)
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        parser.error("Torch-Pruning is not installed; type: pip install 'prunus[bench]'")
    results = measure(arguments.networks, sorted(arguments.blocks), arguments.repeats)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    from prunus.files import atomic_write_text

    atomic_write_text(arguments.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    failed = [
        f"{row.get('network', 'the residual network')}: {error}"
        for row in (*results["speed"], *results["scaling"], *results["memory"])
        if (error := row.get("prunus", row).get("error"))
    ]
    print("\n".join([f"wrote {arguments.out}", *(f"Prunus failed on {line}" for line in failed)]), file=sys.stderr)
    return int(bool(failed))


def measure(networks: Sequence[str], blocks: Sequence[int], repeats: int) -> dict[str, Any]:
    """Run all three tables with a progress bar."""
    weighed = [*networks, *(f"residual:{size}" for size in blocks[-1:])]
    columns = (TextColumn("{task.description:<45}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = 2 * repeats * len(networks) + repeats * len(blocks) + len(weighed)
        task = progress.add_task("warming up", total=total)
        done = iter(range(total))

        def advance(what: str) -> None:
            progress.update(task, description=what, completed=next(done), refresh=True)

        compare("residual:2", 1, lambda _: None)
        speed = [compare(spec, repeats, advance) for spec in networks]
        scaling = scale(blocks, repeats, advance)
        memory = []
        for spec in weighed:
            advance(f"{spec}: memory")
            memory.append(weigh_apart(spec))
        progress.update(task, completed=total)
    about = {"versions": versions(), "threads": torch.get_num_threads(), "repeats": repeats, "pruning_ratio": RATIO}
    return {**about, "goals": GOALS, "speed": speed, "scaling": scaling, "memory": memory}


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """Say whether a network runs on the inputs: not every pruned one does."""
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    except Exception:
        return False
    return True


def _between(begin: float, end: float) -> float:
    return end - begin


if __name__ == "__main__":
    sys.exit(main())
