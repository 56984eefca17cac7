"""Which score, made comparable how, leaves the most accuracy at a budget, and what a search of widths adds to it.

    python benchmarks/allocation.py dense.safetensors cifar10-jpeg.tar.xz

writes docs/results/benchmarks/allocation.json, point by point: the same command goes on where it was stopped. The
networks are judged on one half of the images that `prunus compress` would hold out of training (every second one); the
other half guides the search. The test images are not touched.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

import prunus
from prunus.criteria.registry import Normalize
from prunus.data import normalize
from prunus.deploy import read_header
from prunus.errors import PrunusError
from prunus.files import atomic_write_json, file_sha256, read_json
from prunus.training import evaluate
from prunus.width_search import best_of

ROOT = Path(__file__).resolve().parent.parent
CRITERIA = ("l1_norm", "fused_conv_bn", "channel_sparsity", "delivered_energy")
LOCAL = "local"  # in the place of a normalisation: scores rank within the groups, which all lose the same share
WAYS = (*(way for way in get_args(Normalize) if way != "latency"), LOCAL)

Row = dict[str, Any]
Limit = tuple[str, float]  # "macs" or "params", and the share that stays
Point = tuple[str, str, Limit]
Figures = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the file; 2 for an argument that cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a dense network, written by prunus.save")
    parser.add_argument("data", help="an image archive or folder, or the name of a data set")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="normalisations, and the local scope")
    parser.add_argument("--macs", nargs="*", type=float, default=(0.5, 0.35), help="fractions of the MACs to keep")
    parser.add_argument("--params", nargs="*", type=float, default=(), help="fractions of the parameters to keep")
    parser.add_argument("--calibration", type=int, default=512, help="training images that recovery may look at")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images that is held out")
    parser.add_argument("--evaluations", type=int, default=40, help="networks a search measures; 0: no searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "allocation.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        measure(arguments)
    except PrunusError as error:
        print(f"allocation: {error}", file=sys.stderr)
        return 2
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Measure every point that the file does not hold yet, and write it after each."""
    bench = Bench.prepare(arguments)
    results = earlier(arguments.out, bench.about)
    with Progress(console=Console(stderr=True)) as progress:
        points = [
            (criterion, way, (cost, share))
            for way in arguments.ways
            for criterion in arguments.criteria
            for cost in ("macs", "params")
            for share in getattr(arguments, cost)
        ]
        task = progress.add_task("allocations", total=len(points))
        done = {point_of(row) for row in results["rows"]}
        for point in points:
            if point not in done:
                row = bench.row(*point)
                results["rows"].append(row)
                atomic_write_json(arguments.out, results)
                shown = ", ".join(f"{step} {100 * row[step]['accuracy']:.2f}" for step in STEPS)
                progress.console.print(f"{called(point)}: {shown}", soft_wrap=True)
            progress.advance(task)
        for point in most_promising(results["rows"]):
            if arguments.evaluations and point not in map(point_of, results["searches"]):
                task = progress.add_task(f"widths for {called(point)}", total=1.0)
                row = bench.searched(*point, arguments.evaluations, Told(progress, task))
                results["searches"].append(row)
                atomic_write_json(arguments.out, results)


def most_promising(rows: Sequence[Row]) -> list[Point]:
    """Return the best criterion of each budget, then the second best, by the accuracy after reconstruction."""
    chosen: list[list[Point]] = []
    for limit in sorted({limit_of(row) for row in rows}, key=lambda limit: (limit[0], -limit[1])):
        ranking = sorted((row for row in rows if limit_of(row) == limit), key=lambda r: -r["reconstructed"]["accuracy"])
        best = {row["criterion"]: row["normalize"] for row in reversed(ranking)}  # its first in the ranking stays
        names = list(dict.fromkeys(row["criterion"] for row in ranking))[:2]
        chosen.append([(name, best[name], limit) for name in names])
    return [point for place in zip_longest(*chosen) for point in place if point is not None]


def limit_of(row: Row) -> Limit:
    """Return what a row's budget limits, and its share."""
    cost = "macs" if "macs" in row else "params"
    return cost, row[cost]


def point_of(row: Row) -> Point:
    """Return the point that a row is of."""
    return row["criterion"], row["normalize"], limit_of(row)


def called(point: Point) -> str:
    """Write a point."""
    criterion, way, (cost, share) = point
    return f"{criterion} {way} {share} of the {cost}"


@dataclass(frozen=True)
class Told:
    """Tells a progress bar how far a search is."""

    progress: Progress
    task: TaskID

    def __call__(self, done: float, best: prunus.WidthTrial) -> None:
        """Show the part that is done."""
        self.progress.update(self.task, completed=done)


def earlier(path: Path, about: Row) -> Row:
    """Return the points that the file holds, or none; a PrunusError where they were measured on something else."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return {**about, "rows": [], "searches": []}
    results: Row = read_json(path)
    for key, value in about.items():
        if results.get(key) != value:
            raise PrunusError(
                f"{path} was measured with {key} {results.get(key)!r}, not {value!r}: delete it, or --out."
            )
    return results


SEARCH_IMAGES = 1000  # of the guiding half, for every network of a search
REFITTED = 256  # calibration images, for every network of a search
STEPS = ("removed", "recalibrated", "reconstructed")


@dataclass(frozen=True)
class Bench:
    """The network, the images and what they are for."""

    model: nn.Module
    calibration: Tensor
    guide: tuple[Tensor, Tensor]
    judge: tuple[Tensor, Tensor]
    about: Row

    @classmethod
    def prepare(cls, arguments: argparse.Namespace) -> Bench:
        """Load the network and the images, and hold images out."""
        data = prunus.load_data(arguments.data)
        split = data.split(arguments.validation, arguments.seed)
        as_inputs = functools.partial(normalize, mean=data.mean, std=data.std)
        model = prunus.load(arguments.checkpoint).eval()
        chosen = torch.linspace(0, len(split.train_images) - 1, arguments.calibration).long()
        images, labels = as_inputs(split.val_images), split.val_labels
        judge = (images[1::2], labels[1::2])
        about = {
            "network": read_header(arguments.checkpoint).model,
            "checkpoint_sha256": file_sha256(arguments.checkpoint),
            "data": data.name,
            "judging_images": len(judge[1]),
            "guiding_images": len(labels[0::2]),
            "calibration_images": arguments.calibration,
            "seed": arguments.seed,
            "threads": arguments.threads,
            "versions": {"prunus": prunus.__version__, "torch": torch.__version__},
            "dense": figures(model, judge),
        }
        return cls(model, as_inputs(split.train_images[chosen]), (images[0::2], labels[0::2]), judge, about)

    @functools.cached_property
    def graph(self) -> prunus.ChannelGraph:
        """The network's channel graph."""
        return prunus.trace(self.model, self.calibration[:2])

    def scores(self, criterion: str, way: str, limit: Limit) -> dict[str, Tensor]:
        """Score channels by a criterion and a normalisation, for LOCAL the criterion's own."""
        how: Any = None if way == LOCAL else way
        return prunus.score(
            self.model, self.graph, criterion, normalize=how, budget=within(limit), calibration=self.calibration
        )

    def plan(self, criterion: str, way: str, limit: Limit) -> prunus.PruningPlan:
        """Choose channels by a criterion and a normalisation, or for LOCAL within the groups."""
        scores, scope = self.scores(criterion, way, limit), LOCAL if way == LOCAL else "global"
        return prunus.allocate(self.graph, scores, within(limit), scope=scope, criterion=criterion)

    def row(self, criterion: str, way: str, limit: Limit) -> Row:
        """Prune once, and measure after every step."""
        plan = self.plan(criterion, way, limit)
        return {"criterion": criterion, "normalize": way, limit[0]: limit[1], **self.followed(plan)}

    def searched(self, criterion: str, way: str, limit: Limit, evaluations: int, told: Told) -> Row:
        """Search for widths from those of every way, and measure the best after every step."""
        spread = torch.linspace(
            0, len(self.guide[1]) - 1, min(SEARCH_IMAGES, len(self.guide[1]))
        ).long()  # they lie class by class
        images, labels = (part[spread] for part in self.guide)
        found = prunus.search_widths(
            self.model,
            self.graph,
            self.scores(criterion, way, limit),
            within(limit),
            self.calibration[:: max(1, len(self.calibration) // REFITTED)],
            images,
            labels,
            recover="reconstruct",
            starts=[self.plan(criterion, other, limit) for other in WAYS],
            evaluations=evaluations,
            criterion=criterion,
            seed=self.about["seed"],
            progress=told,
        )
        starts = [trial for trial in found.trials if trial.parent is None]
        return {
            "criterion": criterion,
            "normalize": way,
            limit[0]: limit[1],
            "recover": "reconstruct",
            "images": len(labels),
            "networks": len(found.trials),
            "starts": len(starts),
            "ranking": {"loss": round(starts[0].loss, 6), "accuracy": starts[0].accuracy},
            "best_start": {"loss": round(best_of(starts).loss, 6), "accuracy": best_of(starts).accuracy},
            "best": {"loss": round(found.best.loss, 6), "accuracy": found.best.accuracy},
            "search_seconds": round(found.seconds, 1),
            **self.followed(found.plan),
        }

    def followed(self, plan: prunus.PruningPlan) -> Row:
        """Measure what a plan leaves, and what recalibration and reconstruction make of it."""
        found: Row = {"widths": {group.name: len(group.keep) for group in plan.groups}}
        start = time.perf_counter()
        for step, network in self.steps(plan):
            found[step] = figures(network, self.judge)
            if step == "recalibrated":
                found["guide"] = figures(network, self.guide)
        return {**found, "seconds": round(time.perf_counter() - start, 1)}

    def steps(self, plan: prunus.PruningPlan) -> Iterator[tuple[str, nn.Module]]:
        """Give the pruned network, and what each step makes of it."""
        small = prunus.remove(self.model, self.graph, plan)
        yield "removed", small
        yield "recalibrated", prunus.recalibrate(small, self.calibration)
        yield "reconstructed", prunus.reconstruct(self.model, small, self.graph, plan, self.calibration)[0]


def within(limit: Limit) -> prunus.Budget:
    """Return the budget of a limit."""
    return prunus.Budget(**{limit[0]: limit[1]})


def figures(model: nn.Module, examples: tuple[Tensor, Tensor]) -> Figures:
    """Measure accuracy and cross-entropy on images that are inputs already."""
    same: Callable[[Tensor], Tensor] = torch.nn.Identity()
    return {name: round(value, 6) for name, value in evaluate(model, *examples, normalize=same).items()}


if __name__ == "__main__":
    sys.exit(main())
