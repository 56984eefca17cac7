"""A criterion's options chosen by what they are for: the accuracy on held-out images after the removal."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.allocation import Budget, Scope
from prunus.criteria import Calibration, Criterion
from prunus.criteria.calibration import batches_of
from prunus.criteria.registry import Normalize, get_criterion
from prunus.errors import ConfigError
from prunus.graph.channels import ChannelGraph
from prunus.methods.choice import Choice
from prunus.plan import PruningPlan
from prunus.recovery import Repair, check_repair, repaired
from prunus.surgery import remove
from prunus.training import evaluate

Grid = Mapping[str, Sequence[Any]]
"""Values to try for each option; every combination of them is a point."""

GRIDS: dict[str, tuple[Grid, ...]] = {
    "channel_sparsity": (
        {"degree": ("weight",), "t": (0.05, 0.1, 0.2, 0.5), "lam": (0.0, 0.5, 1.0, 2.0)},
        {"degree": ("activation", "hoyer"), "lam": (0.0, 0.5, 1.0, 2.0)},
    ),
}
"""What is tried where no grid is given; t belongs to the weight degree alone."""


@dataclass(frozen=True)
class TriedOptions:
    """One point of the grid: the plan that it leads to, and held-out accuracy, in [0, 1], and cross-entropy of that."""

    options: Mapping[str, Any]
    plan: PruningPlan
    accuracy: float
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """Return the point as JSON-able data, its plan by what it costs."""
        after = self.plan.after
        found = {"accuracy": round(self.accuracy, 6), "loss": round(self.loss, 6)}
        return {"options": dict(self.options), **found, "macs": after.macs, "params": after.params}


@dataclass(frozen=True)
class OptionsChoice:
    """Every point of the grid, best first, and how many different plans were evaluated for them."""

    ranking: tuple[TriedOptions, ...]
    evaluated: int

    @property
    def best(self) -> TriedOptions:
        """The point of the highest accuracy; then of the lowest loss; then the first in the grid."""
        return self.ranking[0]


def choose_options(
    model: nn.Module,
    graph: ChannelGraph,
    budget: Budget,
    criterion: str | Criterion = "channel_sparsity",
    grid: Grid | Sequence[Grid] | None = None,
    *,
    calibration: Calibration,
    held_out: tuple[Tensor, Tensor],
    recover: Repair = "recalibrate",
    recovery_images: Sequence[Tensor] | None = None,
    normalize: Normalize | None = None,
    scope: Scope = "global",
    min_channels: int | None = None,
    round_to: int = 1,
    header_bytes: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> OptionsChoice:
    """Try a criterion's options: score, allocate, remove, recover and evaluate at every point of a grid.

    Options that lead to the same plan are evaluated once. Equal arguments give equal results.

    Args:
        model: a trained classifier (N, C, H, W) → (N, classes); it is left as it is.
        graph: its channel graph.
        budget: what the smaller network may cost.
        criterion: a key of CRITERIA, or your own function with options.
        grid: values for each option, e.g. ``{"t": (0.05, 0.1), "lam": (0, 1)}``, or several such grids, one after
            another. By default what GRIDS has for the criterion.
        calibration: training images, (N, C, H, W) as the model takes them, or batches of them, with labels or without:
            for criteria that measure, and for the recovery, which looks at no labels.
        held_out: images as the model takes them, and labels, int64 (N,), that neither training nor recovery has seen.
        recover: what is done between removal and evaluation: ``"recalibrate"``, which takes a moment, or
            ``"reconstruct"``, which takes longer by the number of layers and images.
        recovery_images: batches that it looks at, each (N, C, H, W); None for those of `calibration`.
        normalize: as `prunus.score` takes it.
        scope: as `prunus.allocate` takes it, like the next three.
        min_channels: how many channels every group keeps at least.
        round_to: the multiple that kept widths should be.
        header_bytes: what a file takes beside its tensors.
        seed: for criteria that draw.
        progress: told after every point: (points done, points in all).

    Raises:
        ConfigError: the grid is empty or names an unknown option, or the held-out images and labels do not fit.
        BudgetError: the budget cannot be reached.
    """
    points = _points(criterion, grid)
    check_repair(recover)
    _check_held_out(held_out)
    batches = calibration if isinstance(calibration, Tensor) else list(calibration)
    images = recovery_images
    if images is None:
        images = [batch for batch, _ in batches_of(batches, torch.device("cpu"), (), "choose_options")]
    base = Choice(criterion, {}, normalize, scope, min_channels, round_to, header_bytes, seed, batches)
    found: dict[bytes, dict[str, float]] = {}
    tried = []
    for number, options in enumerate(points, 1):
        plan = dataclasses.replace(base, options=options).plan(model, graph, budget)
        key = plan.keep_array(graph).tobytes()
        if key not in found:
            found[key] = _evaluated(model, graph, plan, recover, images, held_out)
        tried.append(TriedOptions(options, plan, found[key]["accuracy"], found[key]["loss"]))
        progress(number, len(points))
    return OptionsChoice(tuple(sorted(tried, key=lambda point: (-point.accuracy, point.loss))), len(found))


def _evaluated(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    recover: Repair,
    images: Sequence[Tensor],
    held_out: tuple[Tensor, Tensor],
) -> dict[str, float]:
    """Return the held-out accuracy and loss of the smaller network, recovered."""
    small = remove(model, graph, plan)
    made = repaired(model, small, graph, plan, images, recover)
    device = next((tensor.device for tensor in made.parameters()), torch.device("cpu"))
    return evaluate(made, *held_out, normalize=lambda batch: batch, device=device)


def _points(criterion: str | Criterion, grid: Grid | Sequence[Grid] | None) -> list[dict[str, Any]]:
    """Spread the grids out, each combination once, in order; every option is checked before anything runs."""
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "this criterion")
    get_criterion(criterion)
    if grid is None:
        if name not in GRIDS:
            raise ConfigError(
                f"there is no grid for {name}: pass one, e.g. grid={{'t': (0.05, 0.1)}} for its own options. "
                f"Without one goes: {', '.join(GRIDS)}."
            )
        grid = GRIDS[name]
    points: list[dict[str, Any]] = []
    for part in [grid] if isinstance(grid, Mapping) else grid:
        points += [point for point in _combinations(part) if point not in points]
    if not points:
        raise ConfigError("the grid is empty: give each option at least one value, e.g. grid={'lam': (0, 1)}.")
    for point in points:
        get_criterion(criterion, **point)
    return points


def _combinations(grid: Grid) -> Iterator[dict[str, Any]]:
    for option, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(
                f"the grid gives {option!r} the value {values!r}; it takes a list of values to try, such as "
                f"{{{option!r}: [{values!r}]}}."
            )
    for chosen in itertools.product(*grid.values()):
        yield dict(zip(grid, chosen, strict=True))


def _check_held_out(held_out: tuple[Tensor, Tensor]) -> None:
    images, labels = held_out
    if not len(images) or labels.shape != images.shape[:1]:
        raise ConfigError(
            f"held_out has images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; it should "
            "be (images, labels), (N, C, H, W) and (N,), with at least one image."
        )
