"""The search stage: which channels stay, their removal, and the proof that it was right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from prunus.allocation import Budget
from prunus.cost import predict_cost
from prunus.criteria import ON_IMAGES, ON_LABELS, Calibration, needed
from prunus.deploy import header_bytes, load, save
from prunus.files import atomic_write_json
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.methods import Choice, DynamicSearch, Recover, Removal, carry_out, iterative, one_shot
from prunus.pipeline import recipes
from prunus.pipeline.branches import obtain_branches, rehearsed_branches, with_note
from prunus.pipeline.details import write_scores
from prunus.pipeline.options import obtain_options
from prunus.pipeline.recovering import Recovery
from prunus.pipeline.run import Run
from prunus.pipeline.sparse import sparse_hook
from prunus.pipeline.timing import kept_budget, multiple_of, rehearsed_plan, timed
from prunus.pipeline.widths import searched_plan
from prunus.plan import PruningPlan
from prunus.verify import Verification

_BATCH = 64  # images that are measured at once
_RAMP_SHARE = 0.6  # of the search epochs, until the whole target is reached; the rest lets the structure settle


def rehearse(run: Run) -> None:
    """Choose channels of the untrained network, so that what cannot work is said now and not after hours of training.

    Raises:
        BudgetError: the budget cannot be reached, which does not depend on the weights.
        ConfigError: the criterion, or an option of it, is none that there is.
    """
    model = run.build()
    graph = timed(run, model, trace(model, run.proof_inputs()))
    if run.config.sparse_epochs:
        sparse_hook(run, graph)
    graph = rehearsed_branches(run, model, graph)
    plan = rehearsed_plan(run, model, graph, choice(run, header_bytes(model, graph, **run.identity)))
    for note in plan.notes:
        run.say(f"note       {note}")


def obtain_removed(run: Run, dense: nn.Module) -> nn.Module:
    """Return the small network before its fine-tuning: from the run folder, or searched now; in eval mode, on the CPU.

    Writes plan.json, verification.json, recovery.json and scores.json. What comes back was always read from the file,
    as in `obtain_dense`.

    Raises:
        VerificationError: the small network differs from the silenced original. Nothing is trained on then.
    """
    if run.folder.removed.exists():
        run.say("search     done before: plan.json, verification.json")
    else:
        dense, graph = obtain_branches(run, dense, timed(run, dense, trace(dense, run.proof_inputs())))
        recovery = Recovery(run)
        scores: dict[str, Tensor] = {}
        removal = _search(run, dense, graph, recovery, scores.update)
        removal = dataclasses.replace(removal, plan=with_note(run, removal.plan))
        removal.plan.save(run.folder.plan)
        atomic_write_json(run.folder.verification, _describe(removal.verifications))
        removal.check()
        worst = max(verification.max_relative_error for verification in removal.verifications)
        run.say(f"verify     the removal is right: largest relative error {worst:.1e} in float64")
        recovery.save()
        write_scores(run, scores)
        save(removal.model, run.folder.removed, plan=removal.plan, **run.identity)
    run.folder.drop_checkpoint("search")
    run.folder.drop_checkpoint("round-*")
    run.folder.drop_checkpoint("recovered-*")
    return load(run.folder.removed)


def budget(run: Run) -> Budget:
    """Return the user's budget."""
    return Budget(**run.config.budgets)


def choice(run: Run, reserve: int, options: Mapping[str, Any] | None = None) -> Choice:
    """Return how the user wants channels chosen; `reserve` is what the file takes beside its tensors.

    The criterion's `options` are the user's unless others are given.
    """
    config = run.config
    options = config.criterion_options if options is None else options
    measured = needed(config.criterion_name, options, has_images=True)
    calibration: Calibration | None = None
    if measured & ON_LABELS:
        calibration = run.labelled_calibration(_BATCH)
    elif measured & ON_IMAGES:
        calibration = run.calibration().split(_BATCH)
    return Choice(
        criterion=config.criterion_name,
        options=options,
        normalize=config.normalize,
        scope="global" if config.allocation == "search" else config.allocation,
        min_channels=config.min_channels,
        round_to=multiple_of(run),
        header_bytes=reserve,
        seed=config.seed,
        calibration=calibration,
    )


def rounds_epochs(epochs: int, rounds: int) -> tuple[int, int]:
    """Share the fine-tuning of an iterative schedule: (epochs after each round but the last, after the last).

    The last network gets half of them or more, since nothing repairs what is lost there.
    """
    between = epochs // 2 // (rounds - 1) if rounds > 1 else 0
    return between, epochs - between * (rounds - 1)


def _search(
    run: Run, dense: nn.Module, graph: ChannelGraph, recover: Recover, seen: Callable[[Mapping[str, Tensor]], None]
) -> Removal:
    reserve = header_bytes(dense, graph, **run.identity)
    settings = choice(run, reserve)
    if run.config.calibrate_options:
        settings = choice(run, reserve, obtain_options(run, dense, graph, budget(run), settings))
    settings = dataclasses.replace(settings, seen=seen)
    inputs = run.proof_inputs()
    target = kept_budget(run, dense, graph, settings)
    if run.config.method == "layer-fusion":
        return _search_dynamically(run, dense, graph, target, settings, recover)
    if run.config.allocation == "search":
        return carry_out(dense, graph, searched_plan(run, dense, graph, settings, target), inputs, recover)
    if run.config.schedule == "one-shot":
        run.say(f"search     {run.config.criterion_name}, one shot")
        return one_shot(dense, graph, target, settings, inputs, recover)
    epochs, _ = rounds_epochs(run.config.finetune_epochs, run.config.rounds)

    def between(model: nn.Module, number: int) -> nn.Module:
        run.say(f"search     round {number} of {run.config.rounds} removed; training for {epochs} epochs")
        if epochs:
            run.train(model, recipes.finetune(run, epochs), f"round-{number}", offset=epochs * (number - 1))
        return model.eval()

    run.say(f"search     {run.config.criterion_name}, {run.config.rounds} rounds")
    rounds = run.config.rounds
    return iterative(dense, graph, target, settings, inputs, rounds=rounds, between=between, recover=recover)


def _search_dynamically(
    run: Run, dense: nn.Module, graph: ChannelGraph, target: Budget, settings: Choice, recover: Recover
) -> Removal:
    epochs = run.config.search_epochs
    inputs = run.proof_inputs()
    hook = DynamicSearch(
        graph,
        predict_cost(graph, graph.keep_all(), header_bytes=settings.header_bytes),
        target,
        settings,
        ramp_epochs=max(1, round(_RAMP_SHARE * epochs)),
        remove_after=run.config.remove_after or None,
        inputs=inputs,
    )
    run.say(f"search     {run.config.criterion_name}, dynamic, for {epochs} epochs at most")
    run.train(dense, recipes.search(run), "search", hook)
    return hook.finish(inputs, recover)


def _describe(verifications: tuple[Verification, ...]) -> dict[str, Any]:
    """Describe the last removal, and every round's where there were several; NaN becomes null, JSON having none."""
    rounds = [dataclasses.asdict(verification) for verification in verifications]
    for described in rounds:
        if not math.isfinite(described["max_relative_error"]):
            described["max_relative_error"] = None
    passed = all(verification.passed for verification in verifications)
    return rounds[-1] | {"passed": passed} | ({"rounds": rounds} if len(rounds) > 1 else {})


def plan_of(run: Run) -> PruningPlan:
    """Read the plan that the search left."""
    return PruningPlan.from_json(run.folder.plan)
