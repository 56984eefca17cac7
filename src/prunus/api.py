"""The three-line road: from a model and a budget to a smaller model that was checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.budget import Budget
from prunus.criteria import Criterion, score
from prunus.errors import ConfigError, VerificationError
from prunus.graph.channels import ChannelGraph
from prunus.graph.ignore import without
from prunus.graph.trace import Inputs, trace
from prunus.plan import PruningPlan
from prunus.surgery import remove
from prunus.verify import Verification, verify


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns: the smaller network, what was removed, the proof, and the original's channel graph.

    `seconds` says how long the stages took: ``"trace"``, ``"plan"`` (scores and allocation), ``"remove"``, ``"verify"``.
    """

    model: nn.Module
    plan: PruningPlan
    verification: Verification
    graph: ChannelGraph
    seconds: Mapping[str, float] = field(default_factory=dict)


def prune(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    criterion: str | Criterion = "fused_conv_bn",
    budget: Budget | None = None,
    pruning_ratio: float | None = None,
    scope: Literal["global", "local"] | None = None,
    min_channels: int | None = None,
    round_to: int = 1,
    ignore: Iterable[str] = (),
    calibration: Tensor | Iterable[Tensor] | None = None,
    seed: int = 0,
    **options: Any,
) -> PruneResult:
    """Prune a network to a budget in one shot, and prove that the removal was right.

    Args:
        model: any CNN; it is left as it is.
        example_inputs: one tensor (N, C, H, W), or a tuple of arguments; also the inputs that the proof runs on.
        criterion: the name of a criterion, or a function from one layer's values to its channels' scores.
        budget: what the smaller network may cost, e.g. ``Budget(macs=0.5)``. Give this or `pruning_ratio`.
        pruning_ratio: the fraction of every group's channels to remove, in [0, 1).
        scope: ``"global"`` ranks all channels together, ``"local"`` takes the same fraction of every group. By default
            global for a budget and local for a pruning ratio.
        min_channels: how many channels every group keeps at least.
        round_to: the multiple that kept widths should be.
        ignore: names of layers or modules whose channels all stay.
        calibration: inputs for the criteria that look at activations.
        seed: for the criteria that draw.
        **options: passed to the criterion.

    Returns:
        The smaller network, the plan, the verification and the channel graph.

    Raises:
        ConfigError: not exactly one of `budget` and `pruning_ratio` is given, or `ignore` names an unknown layer.
        BudgetError: the budget cannot be reached.
        VerificationError: the pruned network differs from the silenced original. Nothing is returned then.
    """
    if (budget is None) == (pruning_ratio is None):
        raise ConfigError("give one of budget=prunus.Budget(macs=0.5) and pruning_ratio=0.5.")
    chosen = budget if budget is not None else Budget(pruning_ratio=pruning_ratio)
    graph = without(trace(model, example_inputs), ignore)
    scores = score(model, graph, criterion, calibration=calibration, seed=seed, **options)
    plan = allocate(
        graph,
        scores,
        chosen,
        scope=scope or ("global" if budget is not None else "local"),
        min_channels=min_channels,
        round_to=round_to,
        criterion=criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "custom"),
    )
    pruned = remove(model, graph, plan)
    verification = verify(model, pruned, graph, plan, example_inputs)
    if not verification.passed:
        raise VerificationError(
            f"the pruned network is not the silenced original: {verification.failure}. A size written as a number in "
            "forward is the usual cause; pass ignore=[...] with the layers of the module that holds it."
        )
    return PruneResult(pruned, plan, verification, graph)
