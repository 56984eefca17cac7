"""The last stages: fine-tuning, the one look at the test set, latency, and the summary."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from prunus.cost import count_cost
from prunus.deploy import Latency, load, processor_name, save
from prunus.errors import BudgetError
from prunus.files import atomic_write_json
from prunus.models.initialise import reinitialise
from prunus.pipeline import recipes
from prunus.pipeline.branches import dropped_branches, silence_branches
from prunus.pipeline.details import write_details
from prunus.pipeline.environment import commit
from prunus.pipeline.int8 import predict_int8, read_int8
from prunus.pipeline.options import chosen_options
from prunus.pipeline.recovering import read_recovery
from prunus.pipeline.run import Run
from prunus.pipeline.search import plan_of, rounds_epochs
from prunus.pipeline.timing import measure_networks, promised_latency, say_if_slow
from prunus.training.evaluate import Predicted, predict_classes


def obtain_finetuned(run: Run, small: nn.Module) -> nn.Module:
    """Return the finished small network: from the run folder, or trained now; in eval mode, on the CPU.

    Raises:
        BudgetError: the file on disk is larger than the budget allows.
    """
    if run.folder.model.exists():
        run.say("fine-tune  done before: model.safetensors")
    else:
        epochs = run.config.finetune_epochs
        if run.config.schedule == "iterative":
            _, epochs = rounds_epochs(epochs, run.config.rounds)
        if run.config.reinitialize:
            run.say(f"fine-tune  none: new weights, trained for {run.config.epochs} epochs")
            torch.manual_seed(run.config.seed)
            reinitialise(small)
            silence_branches(run, small)
            run.train(small, recipes.reinitialized(run), "finetune")
        elif epochs:
            run.say(f"fine-tune  for {epochs} epochs")
            run.train(small, recipes.finetune(run, epochs), "finetune")
        save(small, run.folder.model, plan=plan_of(run), **run.identity)
    run.folder.drop_checkpoint("finetune")
    _check_size(run)
    return load(run.folder.model)


def write_summary(run: Run, trained: nn.Module | None, small: nn.Module) -> None:
    """Evaluate both networks on the test set, time them, and write details.json and then summary.json.

    Where no dense network was `trained`, its costs are those of its initial weights, and it has no accuracy.
    """
    which = "the small network" if trained is None else "both networks"
    run.say(f"test       {which} on the test images, for the first and only time")
    dense = run.build().eval() if trained is None else trained
    tested = {"dense": trained, "pruned": small}
    found = {name: _predicted(run, model) for name, model in tested.items() if model is not None}
    write_details(run, dense, plan_of(run), found)
    int8 = _int8(run)
    accuracies = [_accuracy(run, found.get(name)) for name in ("dense", "pruned")]
    latency = measure_networks(run, {"dense": dense, "pruned": small})
    files = {
        "dense": run.folder.dense,
        "model": run.folder.model,
        "int8": run.folder.int8,
        "plan": run.folder.plan,
    }
    sizes = (
        plan_of(run).before.size_bytes if trained is None else run.folder.dense.stat().st_size,
        run.folder.model.stat().st_size,
    )
    dense_side, pruned_side = (
        _describe(run, model, accuracy, size, latency[name])
        for name, model, accuracy, size in zip(("dense", "pruned"), (dense, small), accuracies, sizes, strict=True)
    )
    say_if_slow(run, latency, pruned_side["macs"] / dense_side["macs"])
    epochs = Counter(str(row["stage"]) for row in run.folder.read_metrics())
    atomic_write_json(
        run.folder.summary,
        {
            "data": run.data.name,
            "model": run.config.model,
            "method": run.config.method,
            "budget": run.config.budgets,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "device": processor_name(run.device),
            "seed": run.config.seed,
            "epochs": {stage: epochs[stage] for stage in _stages(run)},
            **({"options": chosen_options(run)} if run.config.calibrate_options else {}),
            **({"dropped_branches": dropped_branches(run)} if run.config.drop_branches else {}),
            "recovery": read_recovery(run),
            "dense": dense_side,
            "pruned": pruned_side,
            **({"int8": int8 | {"latency_ms": _median(latency.get("int8"))}} if int8 else {}),
            "latency": {name: dataclasses.asdict(value) for name, value in latency.items()},
            "latency_budget": promised_latency(run, latency),
            "files": {what: file.name for what, file in files.items() if file.exists()},
            "widths": _widths(dense, small),
        },
    )


def _stages(run: Run) -> tuple[str, ...]:
    sparse = ("sparse",) if run.config.sparse_epochs else ()
    return ("dense", *sparse, "search", "finetune", *(("int8",) if run.config.int8 else ()))


def _check_size(run: Run) -> None:
    plan = plan_of(run)
    limit = plan.budget.get("size_bytes")
    if limit is None:
        return
    allowed = int(limit * plan.before.size_bytes) if isinstance(limit, float) else limit
    size = run.folder.model.stat().st_size
    if size > allowed:
        raise BudgetError(
            f"{run.folder.model} has {size:,} bytes and the budget is {allowed:,}: this is an error of Prunus, please "
            f"report it; a budget smaller by {size - allowed:,} bytes gets around it."
        )


def _predicted(run: Run, model: nn.Module) -> Predicted:
    found = predict_classes(model.to(run.device), run.data.test_images, normalize=run.normalize, device=run.device)
    model.cpu()
    return found


def _accuracy(run: Run, found: Predicted | None) -> float | None:
    if found is None:
        return None
    return (found.classes == run.data.test_labels).sum().item() / max(1, len(found.classes))


def _describe(run: Run, model: nn.Module, accuracy: float | None, size_bytes: int, latency: Latency) -> dict[str, Any]:
    cost = count_cost(model, run.proof_inputs()[:1])
    return {
        "test_accuracy": accuracy,
        "params": cost.params,
        "macs": cost.macs,
        "size_bytes": size_bytes,
        "latency_ms": latency.median_ms,
    }


def _int8(run: Run) -> dict[str, Any]:
    """Describe the file with 8-bit integers, if there is one."""
    if not run.config.int8:
        return {}
    return {"test_accuracy": _accuracy(run, predict_int8(run)), **read_int8(run)}


def _widths(dense: nn.Module, small: nn.Module) -> list[dict[str, Any]]:
    """List the output channels of every convolution before and after."""
    after = dict(small.named_modules())
    return [
        {"layer": name, "before": module.out_channels, "after": getattr(after[name], "out_channels", 0)}
        for name, module in dense.named_modules()
        if isinstance(module, nn.Conv2d)
    ]


def _median(latency: Latency | None) -> float | None:
    return None if latency is None else latency.median_ms
