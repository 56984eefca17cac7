#!/usr/bin/env python3
"""Compare a budget of latency with one of MACs at equal score kept: which network is faster on the runtime.

    python benchmarks/latency.py --networks resnet20 mobilenetv2_half --runtime ort

For every network (He-initialised, or trained: NAME=FILE) and share of the MACs, one plan is made by MACs and one by
latency, with scores divided by the time that a channel saves, and widths in what was fastest of a few multiples; the
limit of the latter is as low as it can be while its network keeps no less of the scores. Both are exported and timed
in turns, beside the dense one. So are the smallest networks that there are, with one, eight and sixteen channels left
in every layer: what is left of the time when next to no MACs are. Results go to docs/results/benchmarks/latency.json;
scripts/benchmark_table writes the table from it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus import Budget, ChannelGraph, PruningPlan
from prunus.data.cache import default_cache_dir
from prunus.deploy import processor_name
from prunus.deploy.layer_times import RUNTIMES, Clock, measure_times
from prunus.errors import BudgetError
from prunus.files import atomic_write_json
from prunus.pipeline.environment import commit

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12  # of the bisection for the limit of latency
LEAST = (1, 8, 16)  # channels that the smallest networks have in every layer


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenetv2_half"], metavar="NAME[=FILE]")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.35], help="of the MACs")
    parser.add_argument("--runtime", choices=RUNTIMES, default="ort")
    parser.add_argument("--criterion", default="l1_norm", help="one that looks at weights alone")
    parser.add_argument("--runs", type=int, default=200, help="timed calls of each network")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "latency.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    networks = [text.partition("=")[::2] for text in arguments.networks]
    rows = [row for network in networks for row in measure(arguments, *network)]
    floors = [row for network in networks for row in smallest(arguments, *network)]
    atomic_write_json(
        arguments.out,
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "processor": processor_name(),
            "runtime": arguments.runtime,
            "criterion": arguments.criterion,
            "runs": arguments.runs,
            "rows": rows,
            "floors": floors,
        },
    )
    return 0


def measure(arguments: argparse.Namespace, name: str, file: str) -> list[dict[str, Any]]:
    """Compare both budgets for one network."""
    model = network_of(name, file)
    example = torch.zeros(1, 3, 32, 32)
    plain = prunus.trace(model, example)
    found = measure_times(model, plain, example, runtime=arguments.runtime, cache_dir=default_cache_dir())
    graph = plain.with_times(found.times)
    scores = {way: prunus.score(model, graph, arguments.criterion, normalize=way) for way in ("cost", "latency")}
    worth = prunus.score(model, graph, arguments.criterion)  # what is compared
    clock = Clock(arguments.runtime, 1)
    rows = []
    for share in arguments.shares:
        by_macs = prunus.allocate(graph, scores["cost"], Budget(macs=share))
        least = kept(worth, by_macs)
        multiple, by_time = fastest(
            clock,
            model,
            graph,
            {m: quickest(graph, scores["latency"], worth, least, m) for m in sorted({1, 8, found.multiple})},
        )
        plans = {"macs": by_macs, "latency": by_time}
        networks: list[nn.Module] = [model, *(prunus.remove(model, graph, plan) for plan in plans.values())]
        seconds = clock.seconds([clock.open(net, (3, 32, 32)) for net in networks], arguments.runs, percentile=50)
        row: dict[str, Any] = {"network": name, "share": share, "dense_ms": 1e3 * seconds[0]}
        for number, (way, plan) in enumerate(plans.items(), start=1):
            row[way] = {
                "kept": kept(worth, plan),
                "macs_share": plan.after.macs / plan.before.macs,
                "predicted_share": plan.after.latency_ps / plan.before.latency_ps,
                "measured_share": seconds[number] / seconds[0],
            }
        row["latency"]["multiple"] = multiple
        errors = {"table_error": found.table_error, "network_error": found.network_error}
        rows.append(row | errors | {"version": found.runtime})
        shares = [f"{way} {row[way]['measured_share']:.3f} (kept {row[way]['kept']:.4f})" for way in plans]
        print(f"{name} {share:g} of the MACs: {', '.join(shares)} of the dense latency", flush=True)
    return rows


def fastest(
    clock: Clock, model: nn.Module, graph: ChannelGraph, plans: Mapping[int, PruningPlan]
) -> tuple[int, PruningPlan]:
    """Return the multiple whose network takes the least, and its plan; timed apart from what is reported."""
    opened = [clock.open(prunus.remove(model, graph, plan), (3, 32, 32)) for plan in plans.values()]
    taken = clock.seconds(opened, percentile=50)
    return min(zip(taken, plans.items(), strict=True), key=lambda pair: pair[0])[1]


def smallest(arguments: argparse.Namespace, name: str, file: str) -> list[dict[str, Any]]:
    """Time a network with so few channels in every layer, or a multiple of so many, beside the dense one."""
    model = network_of(name, file)
    graph = prunus.trace(model, torch.zeros(1, 3, 32, 32))
    scores = prunus.score(model, graph, arguments.criterion)
    plans = [least_of(graph, scores, channels) for channels in LEAST]
    networks = [model, *(prunus.remove(model, graph, plan) for plan in plans)]
    clock = Clock(arguments.runtime, 1)
    seconds = clock.seconds([clock.open(net, (3, 32, 32)) for net in networks], arguments.runs, percentile=50)
    rows = [
        {
            "network": name,
            "channels": channels,
            "macs_share": plan.after.macs / plan.before.macs,
            "measured_share": taken / seconds[0],
        }
        for channels, plan, taken in zip(LEAST, plans, seconds[1:], strict=True)
    ]
    for row in rows:
        print(f"{name}, {row['channels']} channels a layer: {row['measured_share']:.3f} of the latency", flush=True)
    return rows


def least_of(graph: ChannelGraph, scores: Mapping[str, Tensor], channels: int) -> PruningPlan:
    """Plan the smallest network with multiples of so many channels: halve what is asked for until it is not there."""
    low, high = 0.0, 1.0
    best = prunus.allocate(graph, scores, Budget(macs=1.0))
    for _ in range(STEPS):
        middle = (low + high) / 2
        try:
            best = prunus.allocate(graph, scores, Budget(macs=middle), round_to=channels, min_channels=channels)
            high = middle
        except BudgetError:
            low = middle
    return best


def network_of(name: str, file: str) -> nn.Module:
    """Return a network of the zoo in evaluation mode, with a file's weights or He-initialised."""
    torch.manual_seed(0)
    return (prunus.load(file) if file else prunus.build_model(name)).eval()


def kept(worth: Mapping[str, Tensor], plan: PruningPlan) -> float:
    """Return the share of all scores that a plan keeps; groups that it does not name stay whole."""
    total = sum(float(scores.sum()) for scores in worth.values())
    lost = 0.0
    for group in plan.groups:
        lost += float(worth[group.name].sum() - worth[group.name][list(group.keep)].sum())
    return 1 - lost / total


def quickest(
    graph: ChannelGraph, scores: Mapping[str, Tensor], worth: Mapping[str, Tensor], least: float, round_to: int = 1
) -> PruningPlan:
    """Find the plan of the lowest latency that keeps no less of the scores, by bisection of the limit."""
    low, high = 0.0, 1.0
    best = prunus.allocate(graph, scores, Budget(latency=1.0))
    for _ in range(STEPS):
        middle = (low + high) / 2
        try:
            plan = prunus.allocate(graph, scores, Budget(latency=middle), round_to=round_to)
        except BudgetError:
            low = middle
            continue
        if kept(worth, plan) >= least:
            best, high = plan, middle
        else:
            low = middle
    return best


if __name__ == "__main__":
    sys.exit(main())
