"""A search for the widths within a budget whose network, repaired, does best on held-out images."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.budget import Budget
from prunus.errors import ConfigError, FileFormatError
from prunus.files import atomic_write_text, read_bytes
from prunus.graph.channels import ChannelGraph
from prunus.plan import PruningPlan
from prunus.recovery.batches import Batches, device_of
from prunus.recovery.steps import Repair, check_repair, repaired
from prunus.surgery import remove
from prunus.training.evaluate import evaluate

_ELITE = 5  # so many of the best so far are changed further, the very best as often as all of them together
_SPREAD = 0.3  # of a changed width's logarithm: by a third up or down, as a rule
_REFIT = {"ridge": 1e-3, "max_positions": 5000}  # a trial's: rougher and quicker than what follows the search
_TRIES = 100  # to find widths that were not measured yet; the spread grows meanwhile

Widths = tuple[int, ...]
Progress = Callable[[float, "WidthTrial"], None]


class WidthTrial(BaseModel):
    """One network that was measured.

    `widths` says how many channels each group keeps, in the order of the graph's groups; `loss` is the mean
    cross-entropy and `accuracy` the share named right, in [0, 1], on the held-out images after the repair. `parent`
    is the number of the trial whose widths were changed, None for a starting point.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    widths: tuple[Annotated[int, Field(ge=1)], ...]
    loss: Annotated[float, Field(allow_inf_nan=False)]
    accuracy: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    parent: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class WidthSearch:
    """What `search_widths` returns: the best plan, every trial in its order, and how long they took in all."""

    plan: PruningPlan
    trials: tuple[WidthTrial, ...]
    seconds: float

    @property
    def best(self) -> WidthTrial:
        """The trial that the plan is of: the one with the least loss; among equals the earliest."""
        return best_of(self.trials)


def best_of(trials: Iterable[WidthTrial]) -> WidthTrial:
    """Return the trial with the least loss; among equals the earliest."""
    return min(trials, key=lambda trial: trial.loss)


def search_widths(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    calibration: Tensor | Iterable[Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    recover: Repair = "recalibrate",
    starts: Iterable[PruningPlan] = (),
    seconds: float | None = None,
    evaluations: int | None = None,
    min_channels: int | None = None,
    round_to: int = 1,
    header_bytes: int = 0,
    criterion: str = "",
    seed: int = 0,
    state_file: str | Path | None = None,
    progress: Progress | None = None,
) -> WidthSearch:
    """Search how many channels each group keeps, so that the network within the budget loses least accuracy.

    The scores say which channels of a group stay, the search how many. A trial removes channels, repairs what is left
    and measures the cross-entropy on held-out images, which is smoother than the accuracy. It should be the repair that
    is going to follow: what is best recalibrated need not be best once its layers are refitted. First come the widths
    of the global ranking and of `starts`. Then those of one of the best networks so far are changed: some groups' by
    random factors, and all together up or down to the budget, as `prunus.allocate` does it with `widths`. So every
    trial is within the budget and no smaller than it has to be. No widths are measured twice, and the search ends when
    it finds no others. The candidates depend on the seed and on the trials before alone; time only decides how many
    there are.

    An evolutionary search in the manner of MetaPruning (Liu 2019, arXiv:1903.10258) and, for judging candidates after
    recalibration, of EagleEye (Li 2020, arXiv:2007.02491).

    Args:
        model: the network that `graph` was traced from; it is left as it is.
        graph: its channel graph.
        scores: one finite number a channel for every group, as `prunus.score` returns.
        budget: what the network may cost.
        calibration: what a trial is repaired on; a few hundred training images.
        images: images of every class that the network was not trained on, (N, C, H, W) as it takes them; a thousand or
            more. Not those of the test.
        labels: their classes, int64 (N,).
        recover: ``"recalibrate"`` (`prunus.recalibrate`) or ``"reconstruct"`` (`prunus.reconstruct`, with few positions
            and one ridge), which takes several times as long.
        starts: plans whose widths are tried as well, such as those of other normalisations.
        seconds: stop once so much time has been spent, that of earlier calls with this `state_file` included.
        evaluations: stop after so many trials. The starting points are always measured, and count.
        min_channels: see `prunus.allocate`, as are the next three.
        round_to: multiples to keep.
        header_bytes: what a file takes beside its tensors.
        criterion: the name to record in the plan.
        seed: decides the candidates.
        state_file: a JSON file written after every trial; a search that was stopped goes on from it.
        progress: called after every trial with the part of the time or of the trials that is done, in [0, 1], and the
            best trial so far.

    Raises:
        BudgetError: the budget cannot be reached.
        ConfigError: neither `seconds` nor `evaluations` is given, or one is not positive; the images and labels do
            not go together; or an error of `prunus.allocate` or `prunus.recalibrate`.
        FileFormatError: the state file is of another search, or damaged.
        PlanError: the scores or a start do not fit the graph.
    """
    end = _End(seconds, evaluations)
    _check_examples(images, labels)
    settings = {"min_channels": min_channels, "round_to": round_to, "header_bytes": header_bytes}
    space = _Space(graph, scores, budget, {**settings, "criterion": criterion}, starts)
    check_repair(recover)
    judge = _Judge(model, graph, Batches(calibration, device_of(model)), recover, images, labels)
    mark = ""
    if state_file is not None:
        tried = [*map(space.widths, space.starts)]
        asked = {**settings, "recover": recover, "budget": budget.to_dict(), "seed": seed, "starts": tried}
        mark = _fingerprint(judge, scores, asked)
    state = _State.read(state_file, mark, tuple(group.name for group in graph.groups))
    trials, earlier = list(state.trials[:evaluations]), time.monotonic() - state.seconds
    while len(trials) < len(space.starts) or end.part(len(trials), time.monotonic() - earlier) < 1:
        candidate = space.candidate(trials, seed)
        if candidate is None:
            break
        plan, parent = candidate
        loss, accuracy = judge.measure(plan)
        trials.append(WidthTrial(widths=space.widths(plan), loss=loss, accuracy=accuracy, parent=parent))
        spent = time.monotonic() - earlier
        if state_file is not None:
            state.model_copy(update={"seconds": spent, "trials": tuple(trials)}).write(state_file)
        if progress is not None:
            progress(min(1.0, end.part(len(trials), spent)), best_of(trials))
    plan = space.plan(best_of(trials).widths)
    notes = (*plan.notes, f"widths found by a search over {len(trials)} networks")
    return WidthSearch(plan.model_copy(update={"notes": notes}), tuple(trials), time.monotonic() - earlier)


@dataclass(frozen=True)
class _End:
    """When a search is over."""

    seconds: float | None
    evaluations: int | None

    def __post_init__(self) -> None:
        seconds, evaluations = self.seconds, self.evaluations
        if seconds is None and evaluations is None:
            raise ConfigError("a search needs an end: give seconds=120 or evaluations=100.")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf
        ):
            raise ConfigError(f"seconds is {seconds!r}; it is a positive number, e.g. 120.")
        if evaluations is not None and (
            isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1
        ):
            raise ConfigError(f"evaluations is {evaluations!r}; it is a whole number, at least 1.")

    def part(self, trials: int, seconds: float) -> float:
        """Return which part of the way is done; 1 or more at the end."""
        by_time = 0.0 if self.seconds is None else seconds / self.seconds
        return max(by_time, 0.0 if self.evaluations is None else trials / self.evaluations)


class _Space:
    """The plans within the budget that keep each group's best channels.

    `starts` are those of the global ranking and of the caller's widths, equal ones once.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        scores: Mapping[str, Tensor],
        budget: Budget,
        settings: Mapping[str, Any],
        starts: Iterable[PruningPlan],
    ) -> None:
        self.graph, self.scores, self.budget, self.settings = graph, scores, budget, settings
        plans = [allocate(graph, scores, budget, **settings)]
        for start in starts:
            start.keep_array(graph)  # says where a plan is of another network
            plans.append(self.plan(self.widths(start)))
        self.starts = list({self.widths(plan): plan for plan in plans}.values())

    def plan(self, proportions: Iterable[float]) -> PruningPlan:
        """Return the plan whose widths are in these proportions; its own widths give it again."""
        widths = {group.name: width for group, width in zip(self.graph.groups, proportions, strict=True)}
        return allocate(self.graph, self.scores, self.budget, widths=widths, **self.settings)

    def widths(self, plan: PruningPlan) -> Widths:
        """Return how many channels a plan keeps of each group; of one that it does not name, all."""
        kept = {group.name: len(group.keep) for group in plan.groups}
        return tuple(kept.get(group.name, group.size) for group in self.graph.groups)

    def candidate(self, trials: list[WidthTrial], seed: int) -> tuple[PruningPlan, int | None] | None:
        """Return what comes after these trials, and the trial that it was made of; None where nothing is new.

        First come the starts; then the widths of a good trial are changed until they are new.
        """
        if len(trials) < len(self.starts):
            return self.starts[len(trials)], None
        random = np.random.default_rng((seed, len(trials)))
        seen = {trial.widths for trial in trials}
        ranking = sorted(range(len(trials)), key=lambda number: trials[number].loss)[:_ELITE]
        for attempt in range(_TRIES if self.graph.groups else 0):
            parent = ranking[0] if random.random() < 0.5 else int(random.choice(ranking))
            proportions = np.array(trials[parent].widths, np.float64)
            changed = random.choice(len(proportions), min(int(random.geometric(0.5)), len(proportions)), replace=False)
            proportions[changed] *= np.exp(random.normal(0.0, _SPREAD * (1 + attempt / 10), len(changed)))
            plan = self.plan(proportions.tolist())
            if self.widths(plan) not in seen:
                return plan, parent
        return None


@dataclass(frozen=True)
class _Judge:
    """Measures what a plan leaves of a network."""

    model: nn.Module
    graph: ChannelGraph
    calibration: Batches
    recover: Repair
    images: Tensor
    labels: Tensor

    def measure(self, plan: PruningPlan) -> tuple[float, float]:
        """Return the loss and the accuracy after recalibration; where the loss is not finite, the largest number."""
        small = remove(self.model, self.graph, plan)
        small = repaired(self.model, small, self.graph, plan, self.calibration, self.recover, **_REFIT)
        found = evaluate(small, self.images, self.labels, normalize=nn.Identity(), device=self.calibration.device)
        return found["loss"] if math.isfinite(found["loss"]) else sys.float_info.max, found["accuracy"]


class _State(BaseModel):
    """What a stopped search goes on from; the groups are named in the order of the trials' widths."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    fingerprint: str
    groups: tuple[str, ...] = ()
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    trials: tuple[WidthTrial, ...] = ()

    @classmethod
    def read(cls, path: str | Path | None, fingerprint: str, groups: tuple[str, ...]) -> _State:
        """Read the file, or begin where there is none."""
        if path is None or not Path(path).exists():
            return cls(fingerprint=fingerprint, groups=groups)
        again = f"delete {path} to start the search again"
        try:
            state = cls.model_validate_json(read_bytes(path, "state of a width search"))
        except ValidationError:
            raise FileFormatError(f"the state of a width search {path} is cut short or damaged; {again}") from None
        if state.fingerprint != fingerprint or any(len(trial.widths) != len(groups) for trial in state.trials):
            raise FileFormatError(
                f"the width search in {path} is of another network, other images or other settings; {again}"
            )
        return state.model_copy(update={"groups": groups})

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        atomic_write_text(path, self.model_dump_json(indent=2) + "\n")


def _fingerprint(judge: _Judge, scores: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """Hash everything that decides the trials."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    tensors = [*judge.model.state_dict().items(), *sorted(scores.items())]
    tensors += [("", batch) for batch in judge.calibration]
    for name, tensor in [*tensors, ("images", judge.images), ("labels", judge.labels)]:
        data = torch.as_tensor(tensor).detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_examples(images: Tensor, labels: Tensor) -> None:
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ConfigError(f"{name} is of type {type(value).__name__}; pass a tensor.")
    if labels.dtype != torch.int64 or labels.dim() != 1 or not len(labels) or len(labels) != len(images):
        raise ConfigError(
            f"images are {tuple(images.shape)} and labels {labels.dtype} {tuple(labels.shape)}; labels are one int64 "
            "class for each of at least one image, (N,)."
        )
