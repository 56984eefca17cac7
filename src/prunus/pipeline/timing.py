"""Latency: what layers take on this machine, and the promise kept on the network that is really there.

latency.json in the run folder keeps what was measured, so that a run that goes on chooses as it did before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import nn

from prunus.budget import Budget
from prunus.cost import format_latency, predict_cost
from prunus.data.cache import default_cache_dir
from prunus.deploy import Latency, load, measure_latency, open_exported, processor_name
from prunus.deploy.benchmarking import time_in_turns
from prunus.deploy.latency import percentiles
from prunus.deploy.layer_times import Clock, MeasuredTimes, decode_times, encode_times, measure_times
from prunus.errors import BudgetError, FileFormatError, ModelError
from prunus.files import atomic_write_json, read_json
from prunus.graph.channels import ChannelGraph
from prunus.methods import Choice
from prunus.pipeline.run import Run
from prunus.plan import PruningPlan
from prunus.surgery import remove

_ATTEMPTS = 4
_CLOSE = (0.95, 1.0)  # of the promise, where an attempt is good enough
_NOISE = 1.03  # of the promise, where it is still kept
_MOST = 0.9  # of the MACs: where more are left, no time is missed
_THREADS = 1
_CALLS = 100  # of the finished networks, and before the clock counts
_WARMUP = 10


def timed(run: Run, model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
    """Give the graph its layers' times, where they are asked for; measured once a run."""
    if not run.config.times_layers:
        return graph
    if run.folder.latency.exists():
        return graph.with_times(_read(run)[0].times)
    run.say(f"latency    timing layers in {run.config.latency_runtime}, {_THREADS} thread, one image")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("timing", total=None)
        found = measure_times(
            model,
            graph,
            run.proof_inputs(),
            runtime=run.config.latency_runtime,
            threads=_THREADS,
            cache_dir=run.config.cache_dir or default_cache_dir(),
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    run.say(
        f"latency    known within {found.table_error:.0%} for single layers and {found.network_error:.0%} for networks "
        f"on average ({found.runtime}, {found.processor})"
    )
    if run.config.round_to == "auto":
        run.say(f"latency    widths in multiples of {found.multiple}")
    _write(run, found, None)
    return graph.with_times(found.times)


def multiple_of(run: Run) -> int:
    """Return the multiple that widths are rounded to: the user's, or the one that the runtime likes."""
    return run.config.round_to if isinstance(run.config.round_to, int) else _read(run)[0].multiple


def kept_budget(run: Run, dense: nn.Module, graph: ChannelGraph, settings: Choice) -> Budget:
    """Return the budget, with a limit of latency for which the network really takes what was promised.

    What the table says of a network may be a bit off. So channels are chosen, removed and the network timed beside the
    dense one; the limit moves by what was off, a few times at most.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    budget = Budget(**run.config.budgets)
    if budget.latency_ps is None:
        return budget
    found, chosen = _read(run)
    if chosen is None:
        chosen = _search(run, dense, graph, settings, budget)
        _write(run, found, chosen)
    return with_latency(budget, int(chosen["limit_ps"]))


def rehearsed_plan(run: Run, model: nn.Module, graph: ChannelGraph, settings: Choice) -> PruningPlan:
    """Plan for the untrained network; where the table knows none that is quick enough, the smallest is timed.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    budget = Budget(**run.config.budgets)
    try:
        return settings.plan(model, graph, budget)
    except BudgetError as refusal:
        plan, _ = _smallest(model, graph, settings, budget, refusal)
        share = _Beside(run, model, budget).share(remove(model, graph, plan))
        if share > _NOISE:
            raise BudgetError(f"{refusal} {_timed_too(share)}") from None
        run.say(
            f"latency    by the table no network is so quick, but the smallest is: {share:.0%} of what is asked for"
        )
        return plan


def rehearse_latency(run: Run) -> None:
    """Open the untrained network in the runtime asked for, so that what cannot work is said before hours of training.

    Where layers are timed there, that is before any training and says the same.

    Raises:
        ConfigError: the runtime, or what writes its files, is not installed.
        ModelError: its files cannot hold the network.
    """
    if not run.config.times_layers and run.config.latency_runtime != "torch":
        try:
            Clock(run.config.latency_runtime, _THREADS).open(run.build().eval(), run.input_shape)
        except ModelError as error:
            raise ModelError(f"--runtime {run.config.latency_runtime}: {error}") from error


def measure_networks(run: Run, networks: Mapping[str, nn.Module]) -> dict[str, Latency]:
    """Time networks in turns, one image on one thread; in ONNX Runtime also the file with 8-bit integers, as "int8"."""
    runtime = run.config.latency_runtime
    if runtime == "torch":
        return measure_latency(networks, run.proof_inputs()[:1])
    clock = Clock(runtime, _THREADS)
    runners = {name: clock.open(network.cpu(), run.input_shape) for name, network in networks.items()}
    if run.config.int8 and runtime == "ort":
        runners["int8"] = open_exported(run.folder.int8, _THREADS)
    times = time_in_turns(runners, 1, _CALLS, _WARMUP)
    return {
        name: Latency(*percentiles(taken), _CALLS, _THREADS, 1, clock.version, processor_name())
        for name, taken in times.items()
    }


def promised_latency(run: Run, taken: Mapping[str, Latency]) -> dict[str, Any]:
    """Set the latency that was promised beside what the finished network takes; empty without a budget of latency."""
    budget = Budget(**run.config.budgets)
    if budget.latency_ps is None:
        return {}
    found, _ = _read(run)
    dense, small = (1e9 * taken[name].median_ms for name in ("dense", "pruned"))  # picoseconds
    promised = budget.latency_ps if isinstance(budget.latency_ps, int) else budget.latency_ps * dense
    told = [format_latency(round(value)) for value in (small, promised, dense)]
    run.say(f"latency    {told[0]} in {found.runtime}, promised {told[1]} (dense {told[2]})")
    return {
        "runtime": found.runtime,
        "processor": found.processor,
        "threads": _THREADS,
        "promised_ms": round(promised / 1e9, 4),
        "measured_ms": taken["pruned"].median_ms,
        "dense_ms": taken["dense"].median_ms,
        "table_error": found.table_error,
        "network_error": found.network_error,
    }


def say_if_slow(run: Run, taken: Mapping[str, Latency], macs: float) -> None:
    """Say what to try where most of the MACs that went did not become time.

    Args:
        run: a run whose networks were timed.
        taken: what the networks "dense" and "pruned" took.
        macs: share of the MACs that are left.
    """
    dense, small = taken["dense"].median_ms, taken["pruned"].median_ms
    chosen_for_time = run.config.latency is not None or run.config.round_to != 1 or run.config.drop_branches > 0
    if chosen_for_time or macs > _MOST or 1 - small / dense >= 0.5 * (1 - macs):
        return
    told = format_latency(round(1e9 * small)), format_latency(round(1e9 * dense))
    run.say(
        f"note       {1 - macs:.0%} of the MACs went, but little of the time: {told[0]} for one image in "
        f"{taken['pruned'].runtime}, dense {told[1]}. A runtime likes some widths better; --round-to auto "
        "--normalize latency finds them, and --drop-branches takes whole layers out"
    )


def with_latency(budget: Budget, latency_ps: int) -> Budget:
    """Return the budget with another limit of latency."""
    return Budget(**(budget.to_dict() | {"latency_ps": latency_ps}))


class _Beside:
    """Times smaller networks beside the dense one, which has all of its branches."""

    def __init__(self, run: Run, dense: nn.Module, budget: Budget) -> None:
        if run.config.drop_branches and run.folder.dense.exists():
            dense = load(run.folder.dense)
        self.clock, self.shape = Clock(run.config.latency_runtime, _THREADS), run.input_shape
        self.dense, self.wanted = self.clock.open(dense.cpu().eval(), self.shape), budget.latency_ps

    def share(self, small: nn.Module) -> float:
        """Return what a network takes, as a share of what was promised."""
        taken = self.clock.seconds([self.dense, self.clock.open(small.eval(), self.shape)], percentile=50)
        if isinstance(self.wanted, int):
            return float(taken[1] * 1e12 / self.wanted)
        return float(taken[1] / taken[0] / (self.wanted or 1.0))


def _smallest(
    dense: nn.Module, graph: ChannelGraph, settings: Choice, budget: Budget, refusal: BudgetError
) -> tuple[PruningPlan, int]:
    """Plan the network that takes the least by the table, which is not believed before that one was timed.

    Where small networks lie outside of what was measured, the table may say too much by half.
    """
    if refusal.least_latency_ps is None:
        raise refusal
    limit = refusal.least_latency_ps
    return settings.plan(dense, graph, with_latency(budget, limit)), limit


def _timed_too(share: float) -> str:
    return f"Timed beside the dense one, it takes {share:.2f} times what was asked for."


def _search(run: Run, dense: nn.Module, graph: ChannelGraph, settings: Choice, budget: Budget) -> dict[str, Any]:
    whole = predict_cost(graph, graph.keep_all(), header_bytes=settings.header_bytes)
    limit = budget.limits(whole)["latency_ps"]
    attempts: list[dict[str, float]] = []
    beside = _Beside(run, dense, budget)
    for _ in range(_ATTEMPTS):
        refused = None
        try:
            plan = settings.plan(dense, graph, with_latency(budget, limit))
        except BudgetError as refusal:
            if attempts:  # the table thinks that less is not to be had
                break
            plan, limit = _smallest(dense, graph, settings, budget, refusal)
            refused = refusal
        share = beside.share(remove(dense, graph, plan))
        if refused is not None and share > _NOISE:
            raise BudgetError(f"{refused} {_timed_too(share)}")
        attempts.append({"limit_ps": limit, "share_of_the_promise": share})
        if _CLOSE[0] <= share <= _CLOSE[1] or not plan.removed:
            break
        limit = max(1, int(limit * 0.98 / share))
    kept = [attempt for attempt in attempts if attempt["share_of_the_promise"] <= _NOISE]
    best = max(kept, key=lambda a: a["limit_ps"]) if kept else min(attempts, key=lambda a: a["share_of_the_promise"])
    share, networks = best["share_of_the_promise"], f"{len(attempts)} network{'s' * (len(attempts) > 1)}"
    run.say(f"latency    {share:.0%} of what was promised, the best of {networks}")
    if share > _NOISE:
        run.say("note       no smaller network is faster here: the latency that was asked for is not kept")
    return {**best, "attempts": attempts}


def _read(run: Run) -> tuple[MeasuredTimes, dict[str, Any] | None]:
    data = read_json(run.folder.latency, "record of latency")
    try:
        chosen = data["chosen"]
        if chosen is not None and not isinstance(chosen["limit_ps"], int):
            raise ValueError("no limit")
        return decode_times(data["times"]), chosen
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"the record of latency {run.folder.latency} lacks something or is mistyped: {error!r:.100}; delete it to "
            "measure again"
        ) from error


def _write(run: Run, found: MeasuredTimes, chosen: dict[str, Any] | None) -> None:
    atomic_write_json(run.folder.latency, {"times": encode_times(found), "chosen": chosen})
