"""The three-line road: from a model and a budget to a smaller model that was checked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.branches import DroppedBranch, choose_branches
from prunus.branches import drop_branches as leave_out
from prunus.budget import Budget
from prunus.criteria import Calibration, Criterion, score
from prunus.criteria.calibration import batches_of
from prunus.errors import BudgetError, ConfigError, VerificationError
from prunus.graph.branches import without_branches
from prunus.graph.channels import ChannelGraph, ChannelGroup
from prunus.graph.ignore import keeping, with_outputs, without
from prunus.graph.trace import Inputs, trace
from prunus.plan import PruningPlan, plan_from_keep
from prunus.recovery import in_order
from prunus.recovery import recover as run_steps
from prunus.recovery.batches import device_of
from prunus.surgery import remove
from prunus.verify import TOLERANCE, Verification, verify


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns: the smaller network, what was removed, the proof, and the original's channel graph.

    The proof is that of the removal, before any step that `recover` named. `seconds` says how long the stages took:
    ``"trace"``, ``"plan"`` (scores and allocation), ``"remove"``, ``"verify"`` and, if wanted, ``"branches"`` and
    ``"recover"``. `dropped` are the residual branches that went as a whole, in their order.
    """

    model: nn.Module
    plan: PruningPlan
    verification: Verification
    graph: ChannelGraph
    seconds: Mapping[str, float] = field(default_factory=dict)
    dropped: tuple[DroppedBranch, ...] = ()


def prune(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    criterion: str | Criterion = "delivered_energy",
    budget: Budget | None = None,
    pruning_ratio: float | None = None,
    scope: Literal["global", "local"] | None = None,
    min_channels: int | None = None,
    round_to: int = 1,
    drop_branches: int = 0,
    ignore: Iterable[str] = (),
    freeze: Iterable[str] = (),
    calibration: Calibration | None = None,
    recover: str | Iterable[str] = (),
    seed: int = 0,
    **options: Any,
) -> PruneResult:
    """Prune a network to a budget in one shot, and prove that the removal was right.

    Args:
        model: any CNN; it is left as it is.
        example_inputs: one tensor (N, C, H, W), or a tuple of arguments; also the inputs that the proof runs on.
        criterion: the name of a criterion, or a function from one layer's values to its channels' scores. By default
            what a channel delivers to the layers that read it, measured on `calibration` where that is given.
        budget: what the smaller network may cost, e.g. ``Budget(macs=0.5)``. Give this or `pruning_ratio`.
        pruning_ratio: the fraction of every group's channels to remove, in [0, 1).
        scope: ``"global"`` ranks all channels together, ``"local"`` takes the same fraction of every group. By default
            global for a budget and local for a pruning ratio.
        min_channels: how many channels every group keeps at least.
        round_to: the multiple that kept widths should be.
        drop_branches: how many residual branches go as a whole, before channels are chosen; see
            `prunus.choose_branches`. The proof is then against the original without them. Their weights are zero, what
            is left of their channels stays in the network's code, and their parameters are frozen, so that training
            does not wake them; `prunus.export` leaves them out.
        ignore: names of layers or modules that keep their exact shape.
        freeze: names of layers or modules whose outputs stay as many, while their inputs may become fewer.
        calibration: what the criteria that look at activations or gradients measure on: images, (N, C, H, W), an
            iterable of batches, or one of (images, labels) pairs, which taylor needs; see `prunus.score`. Also what
            `recover` and `drop_branches` look at, without labels.
        recover: what gives accuracy back once the removal is proven: some of ``"compensate"``, ``"reconstruct"`` and
            ``"recalibrate"``, carried out in this order; see the functions of these names. `reconstruct` alone does
            most.
        seed: for the criteria that draw, and for `reconstruct`.
        **options: passed to `prunus.score`: the criterion's own, ``reduce``, ``normalize`` and ``needs``.

    Returns:
        The smaller network, the plan, the verification and the channel graph.

    Raises:
        ConfigError: not exactly one of `budget` and `pruning_ratio` is given, `ignore` or `freeze` names an unknown
            layer, or `recover` an unknown step, or it or `drop_branches` has no calibration, or there are not so many
            branches.
        BudgetError: the budget cannot be reached, or nothing can be pruned.
        VerificationError: the pruned network differs from the silenced original. Nothing is returned then.
    """
    if (budget is None) == (pruning_ratio is None):
        raise ConfigError("give one of budget=prunus.Budget(macs=0.5) and pruning_ratio=0.5.")
    chosen = budget if budget is not None else Budget(pruning_ratio=pruning_ratio)
    steps = in_order(recover)
    if calibration is None and (steps or drop_branches):
        what = steps[0] if steps else "drop_branches"
        raise ConfigError(f"{what} looks at images: pass calibration=images, (N, C, H, W) as the model takes them.")
    clock = _Clock()
    if isinstance(calibration, Iterator):  # scores may be taken several times
        calibration = list(calibration)
    ignored, frozen = ((v,) if isinstance(v, str) else tuple(v) for v in (ignore, freeze))
    graph = with_outputs(without(trace(model, example_inputs), ignored), frozen)
    clock.stop("trace")
    dropped: tuple[DroppedBranch, ...] = ()
    if drop_branches and calibration is not None:
        images = _images(model, calibration, "drop_branches")
        dropped = tuple(choose_branches(model, graph, images, drop_branches))
        model, graph = leave_out(model, graph, _names(dropped), images)
        clock.stop("branches")
    for attempt in range(ATTEMPTS):
        if not graph.groups and chosen.pruning_ratio:
            reasons = "; ".join(f"{kept.tensor}: {kept.reason}" for kept in graph.frozen[:5])
            raise BudgetError(
                f"nothing of this network can be pruned ({reasons or 'it has no layer whose outputs may go'})."
            )
        scores = score(model, graph, criterion, budget=chosen, calibration=calibration, seed=seed, **options)
        plan = allocate(
            graph,
            scores,
            chosen,
            scope=scope or ("global" if budget is not None else "local"),
            min_channels=min_channels,
            round_to=round_to,
            criterion=criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "custom"),
        )
        clock.stop("plan")
        pruned, verification = _proven(model, graph, plan, example_inputs, clock)
        if pruned is not None and verification.passed:
            if calibration is not None and steps:
                pruned = _recovered(model, pruned, graph, plan, calibration, steps, seed)
                clock.stop("recover")
            return PruneResult(_frozen(pruned, dropped), plan, verification, graph, clock.seconds, dropped)
        if not attempt:
            closer = with_outputs(without(trace(model, example_inputs, thorough=True), ignored), frozen)
            closer = without_branches(closer, _names(dropped))
            if closer.groups:
                graph = closer
                continue
        broken = _culprits(model, graph, plan, example_inputs)
        if not broken:  # nothing was removed, and the copy differs all the same
            break
        graph = keeping(graph, broken, f"without some of its channels, {verification.failure}")
        clock.stop("verify")
    raise VerificationError(
        f"the pruned network is not the silenced original: {verification.failure}. Pass ignore=[...] with the layers "
        "of the module that differs."
    )


ATTEMPTS = 20
"""How often a plan is made anew, each time with what broke the network kept whole."""


class _Clock:
    """Adds up how long the stages take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _proven(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, inputs: Inputs, clock: _Clock | None = None
) -> tuple[nn.Module | None, Verification]:
    """Remove and verify; a removal that the network refuses is a proof that failed."""
    try:
        pruned = remove(model, graph, plan)
        if clock is not None:
            clock.stop("remove")
        verification = verify(model, pruned, graph, plan, inputs)
    except Exception as error:  # whatever it is, nothing is handed back
        return None, Verification(False, float("nan"), TOLERANCE, "float64", 0, 0, str(error))
    if clock is not None:
        clock.stop("verify")
    return pruned, verification


def _recovered(
    model: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    calibration: Calibration,
    steps: tuple[str, ...],
    seed: int,
) -> nn.Module:
    images = _images(model, calibration, steps[0])
    for done in run_steps(model, pruned, graph, plan, images, steps, seed=seed):
        pruned = done.model
    return pruned


def _images(model: nn.Module, calibration: Calibration, what: str) -> list[Tensor]:
    return [batch for batch, _ in batches_of(calibration, device_of(model), (), what)]


def _names(dropped: Iterable[DroppedBranch]) -> list[str]:
    return [one.branch.name for one in dropped]


def _frozen(model: nn.Module, dropped: Iterable[DroppedBranch]) -> nn.Module:
    """Take the gradients of what is left of branches away, since training would wake them."""
    held = {name for one in dropped for name in one.branch.parameters}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name in held:
            tensor.requires_grad_(False)
    return model


def _culprits(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, inputs: Inputs) -> list[str]:
    """Find the groups whose removal breaks the network: halve the plan until the halves are single groups."""
    full, keep = graph.keep_all(), plan.keep_array(graph)

    def breaks(groups: list[ChannelGroup]) -> bool:
        some = full.copy()
        for group in groups:
            some[group.channels] = keep[group.channels]
        return not _proven(model, graph, plan_from_keep(graph, some), inputs)[1].passed

    def search(groups: list[ChannelGroup]) -> list[str]:
        if len(groups) <= 1:
            return [group.name for group in groups]
        halves = (groups[: len(groups) // 2], groups[len(groups) // 2 :])
        found = [name for half in halves if breaks(half) for name in search(half)]
        return found or [group.name for group in groups]  # only together do they break it

    return search([group for group in graph.groups if not keep[group.channels].all()] or list(graph.groups))
