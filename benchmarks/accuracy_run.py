"""Work on one cell of benchmarks/accuracy.py: a network is pruned by a method, recovered, trained and measured."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accuracy_cell import Cell, Settings
from accuracy_methods import Method, choice_of, find_method, prune_with_torch_pruning
from torch import Tensor, nn

import prunus
from prunus.cost import count_cost, predict_cost
from prunus.data import augment
from prunus.deploy import measure_latency, processor_name, read_header
from prunus.errors import ConfigError
from prunus.files import atomic_write_json, read_json
from prunus.graph.channels import ChannelGraph
from prunus.methods import Choice, DynamicSearch, carry_out
from prunus.models.initialise import reinitialise
from prunus.pipeline.environment import commit
from prunus.plan import PruningPlan
from prunus.training import Hook, Recipe, dense_recipe, evaluate, finetune_recipe, fit
from prunus.training.hardware import choose_compute

DISTILLED = {"distill": 0.9, "temperature": 4.0}
"""Of the cells with distillation; as in Cho and Hariharan 2019 (arXiv:1910.01348), not tuned."""

DENSE_RATES = {"resnet20": 0.3, "mobilenetv2_half": 0.1}
"""Peak learning rates from scratch where they are not dense_recipe's own: those that the dense network was given."""

RECIPES: dict[str, dict[str, Any]] = {
    "resnet20": {"optimizer": "muon", "accumulate": 4, "label_smoothing": 0.1, "cutout": 8},
    "mobilenetv2_half": {"batch_size": 64, "accumulate": 2},
}
"""What all trainings of a network have in common where it is not the recipes' own.

The dense ones had it as well, but for MobileNetV2's accumulation: in halves a batch stays in the processor's cache, and
a step takes two thirds of the time (torch 2.13 on an AMD EPYC with AVX2: 430 for 640 ms). The dense MobileNetV2 was
trained in float32; all else is in bfloat16 where the processor has instructions for it.
"""

_BATCH = 256  # images of a recovery step at once
_GUIDES = 1000  # held-out images at most that a search of widths measures on


class Run:
    """One cell while it is worked on; what is done already is read from its folder."""

    def __init__(self, cell: Cell, settings: Settings, learning_rate: float) -> None:
        self.cell, self.settings, self.learning_rate = cell, settings, learning_rate
        self.method: Method = find_method(cell.method)
        self.folder = settings.work / cell.name
        self.dense = prunus.load(settings.checkpoints[cell.network]).eval()
        self.seconds: dict[str, float] = {}
        self.steps: dict[str, float] = {}  # held-out accuracy after each
        self.epochs: dict[str, int] = {}
        self.history: list[dict[str, Any]] = []

    def finish(self) -> dict[str, Any]:
        """Do all that is left of the cell, read the test set once, and return its figures."""
        small, notes = self._start()
        if self.method.epochs != "none":
            self.train(small, self.recipe(), "train")
            self.steps["trained"] = self.held_out(small)
        return self._described(small) | {"notes": notes}

    def finetuned(self) -> float:
        """Return the held-out accuracy at the end, for the choice of a learning rate; no test image is looked at."""
        small, _ = self._start()
        self.train(small, self.recipe(), "train")
        return self.held_out(small)

    def recipe(self) -> Recipe:
        """Return how the network is trained after the removal, or from scratch."""
        settings, left = self.settings, self.settings.finetune_epochs - self.epochs.get("search", 0)
        if self.method.kind == "scratch":
            epochs = settings.dense_epochs if self.method.epochs == "dense" else settings.finetune_epochs
            rate = DENSE_RATES.get(self.cell.network)
            changes = {} if rate is None else {"learning_rate": rate}
            return dense_recipe(epochs, **changes, **self._shared())
        return finetune_recipe(left, learning_rate=self.learning_rate, ema=self.method.ema, **self._shared())

    def train(self, model: nn.Module, recipe: Recipe, stage: str, hook: Hook | None = None) -> None:
        """Train in place; a stage that was interrupted goes on, one that is finished comes back as it was."""
        begin, settings = time.perf_counter(), self.settings
        looks = {"mean": settings.data.mean, "std": settings.data.std}
        looks |= {"crop_padding": recipe.crop_padding, "flip": recipe.flip, "cutout": recipe.cutout}
        taught = {"teacher": copy.deepcopy(self.dense).to(settings.device)} if self.cell.distilled else {}
        history = fit(
            model,
            settings.split,
            recipe,
            augment=functools.partial(augment, **looks),
            normalize=settings.normalize,
            stage=stage,
            seed=self.cell.seed,
            checkpoint_dir=self.folder,
            device=settings.device,
            hook=hook,
            on_epoch=functools.partial(settings.on_epoch, self.cell),
            progress=False,
            **taught,
        )
        model.cpu()
        self.history += history
        self.epochs[stage] = len(history)
        self.seconds[stage] = round(sum(row["seconds"] for row in history), 2)
        self.seconds[f"{stage}, this time"] = round(time.perf_counter() - begin, 2)

    def held_out(self, model: nn.Module) -> float:
        """Return the share of held-out images that a network names right, in [0, 1]."""
        return self._accuracy(model, self.settings.split.val_images, self.settings.split.val_labels)

    def _accuracy(self, model: nn.Module, images: Tensor, labels: Tensor) -> float:
        device = self.settings.device
        found = evaluate(model.to(device), images, labels, normalize=self.settings.normalize, device=device)
        model.cpu()
        return round(found["accuracy"], 6)

    def _shared(self) -> dict[str, Any]:
        side = int(self.settings.data.train_images.shape[-1])
        shared: dict[str, Any] = {"crop_padding": side // 8, "flip": self.settings.flip}
        shared |= RECIPES.get(self.cell.network, {})
        if not self.cell.distilled:
            return shared
        if not {field.name for field in dataclasses.fields(Recipe)}.issuperset(DISTILLED):
            raise ConfigError("this Prunus does not distil; leave out --distill")
        return shared | DISTILLED

    def _start(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network that is trained, from the cell's folder where it is there, and notes on it."""
        file, figures = self.folder / "start.safetensors", self.folder / "start.json"
        if file.exists() and figures.exists():
            known = read_json(figures)
            self.seconds, self.steps, self.epochs = known["seconds"], known["steps"], known["epochs"]
            self.history = known["history"]
            return prunus.load(file).eval(), known["notes"]
        small, notes = self._pruned()
        self.save(small, file)
        kept = {"seconds": self.seconds, "steps": self.steps, "epochs": self.epochs, "history": self.history}
        atomic_write_json(figures, kept | {"notes": notes})
        return small, notes

    def _pruned(self) -> tuple[nn.Module, dict[str, Any]]:
        method, macs = self.method, self.cell.macs
        if method.kind == "dense" or macs is None:
            return copy.deepcopy(self.dense), {}
        example = self.settings.images[:1]
        if method.kind == "torch-pruning":
            with self._timed("removed"):
                limit = int(macs * count_cost(self.dense, example).macs)
                small, ratio = prune_with_torch_pruning(self.dense, method.criterion, limit, example)
            return self._recovered(self.dense, small, None), {"pruning_ratio": ratio}
        graph = prunus.trace(self.dense, self.settings.images[:2])
        budget, choice = prunus.Budget(macs=macs), choice_of(method, self.settings.criterion_images, self.cell.seed)
        with self._timed("removed"):
            plan = self._plan(graph, budget, choice)
            removal = carry_out(self.dense, graph, plan, self.settings.images[:8])
        removal.check()
        error = max(one.max_relative_error for one in removal.verifications)
        if method.kind == "scratch":
            torch.manual_seed(self.cell.seed)
            fresh = removal.model
            reinitialise(fresh)
            return fresh, {"verified": error}
        small = self._recovered(self.dense, removal.model, (graph, removal.plan))
        if method.kind == "dynamic":
            small = self._searched(graph, budget, choice)
        return small, {"verified": error}

    def _plan(self, graph: ChannelGraph, budget: prunus.Budget, choice: Choice) -> PruningPlan:
        if not self.method.trials:
            return choice.plan(self.dense, graph, budget)
        held_out, labels = self.settings.split.val_images, self.settings.split.val_labels
        guides = torch.linspace(0, len(labels) - 1, min(_GUIDES, len(labels))).long()  # they lie class by class
        found = prunus.search_widths(
            self.dense,
            graph,
            choice.scores(self.dense, graph, budget),
            budget,
            self.settings.criterion_images[::2],
            self.settings.normalize(held_out[guides]),
            labels[guides],
            recover="reconstruct" if self.method.reconstructs else "recalibrate",
            starts=[dataclasses.replace(choice, scope="local").plan(self.dense, graph, budget)],
            evaluations=self.method.trials,
            criterion=self.method.criterion,
            seed=self.cell.seed,
            state_file=self.folder / "widths.json",
        )
        return found.plan

    def _searched(self, graph: ChannelGraph, budget: prunus.Budget, choice: Choice) -> nn.Module:
        """Search while training, for half of the fine-tune's epochs, and return the removed and recovered network."""
        model, epochs = copy.deepcopy(self.dense), self.settings.finetune_epochs // 2
        if not epochs:
            raise ConfigError("the dynamic search takes half of the fine-tune: give --finetune-epochs 2 or more")
        whole = predict_cost(graph, graph.keep_all())
        hook = DynamicSearch(graph, whole, budget, choice, ramp_epochs=epochs)
        recipe = finetune_recipe(epochs, learning_rate=self.learning_rate, schedule="constant", **self._shared())
        self.train(model, recipe, "search", hook)
        removal = carry_out(model, graph, hook.final_plan(model), self.settings.images[:8])
        removal.check()
        return self._recovered(model, removal.model, (graph, removal.plan), "searched, ")

    def _recovered(
        self, whole: nn.Module, small: nn.Module, made: tuple[ChannelGraph, PruningPlan] | None, after: str = ""
    ) -> nn.Module:
        """Measure the network after each recovery step, and return what is best on the held-out images.

        Reconstruction, where the method has it, is always taken; recalibration only where it helps.
        """
        device, batches = self.settings.device, self.settings.images.split(_BATCH)
        start: dict[str, nn.Module] = {}

        def measured(step: str, model: nn.Module) -> nn.Module:
            self.steps[after + step] = self.held_out(model)
            start[step] = model
            return model

        measured("removed", small)
        with self._timed(f"{after}recalibrated"):
            recalibrated = prunus.recalibrate(small.to(device), batches)
        measured("recalibrated", recalibrated)
        if made is not None and self.method.reconstructs:
            with self._timed(f"{after}reconstructed"):
                moved = (whole.to(device), small.to(device))
                refitted, _ = prunus.reconstruct(*moved, *made, batches, seed=self.cell.seed)
            whole.cpu(), small.cpu()
            measured("reconstructed", refitted)
            again = prunus.recalibrate(refitted.to(device), batches)
            measured("reconstructed, recalibrated", again)
        usable = [step for step in start if self._may_take(step, set(start))]
        chosen = max(usable, key=lambda step: self.steps[after + step])
        self.steps[f"{after}recovered"] = self.steps[after + chosen]
        return start[chosen].cpu()

    def _may_take(self, step: str, there: set[str]) -> bool:
        if "recalibrated" in step and not self.method.recalibrates:
            return False
        return "reconstructed" in step or "reconstructed" not in there

    def _described(self, small: nn.Module) -> dict[str, Any]:
        settings, cell = self.settings, self.cell
        example = settings.images[:1]
        recipe = None if self.method.epochs == "none" else self.recipe()
        size = self.save(small, self.folder / "model.safetensors")
        latency = measure_latency({"dense": self.dense, "this": small}, example, runs=50)
        costs = {name: count_cost(model, example) for name, model in (("dense", self.dense), ("this", small))}
        return {
            **dataclasses.asdict(cell),
            "label": self.method.label,
            "data": settings.data.name,
            "held_out_images": len(settings.split.val_labels),
            "split": {"validation": settings.validation, "seed": settings.split_seed},
            "calibration_images": len(settings.images),
            "epochs": self.epochs,
            "recipe": recipe and dataclasses.asdict(recipe),
            "bfloat16": recipe and choose_compute(small, recipe.precision, settings.device, example).bfloat16,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "device": processor_name(settings.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "held_out_accuracy": {"dense": self.held_out(self.dense), **self.steps},
            "test_accuracy": self._accuracy(small, settings.data.test_images, settings.data.test_labels),
            "macs_left": costs["this"].macs,
            "macs_share": round(costs["this"].macs / costs["dense"].macs, 6),
            "params": costs["this"].params,
            "size_bytes": size,
            "latency": {name: dataclasses.asdict(value) for name, value in latency.items()},
            "latency_ratio": round(latency["this"].median_ms / latency["dense"].median_ms, 4),
            "widths": {name: m.out_channels for name, m in small.named_modules() if isinstance(m, nn.Conv2d)},
            "seconds": self.seconds,
            "history": self.history,
        }

    def save(self, model: nn.Module, path: Path) -> int:
        """Write a network so that prunus.load reads it back; return its bytes on disk."""
        header = read_header(self.settings.checkpoints[self.cell.network])
        return prunus.save(
            model,
            path,
            model_name=header.model,
            num_classes=header.num_classes,
            in_channels=header.in_channels,
            input_shape=tuple(self.settings.data.train_images.shape[1:]),
        )

    def _timed(self, step: str) -> _Timer:
        return _Timer(self.seconds, step)


class _Timer:
    """Writes down how many seconds a block took."""

    def __init__(self, seconds: dict[str, float], step: str) -> None:
        self.seconds, self.step = seconds, step

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.step] = round(time.perf_counter() - self.begin, 2)


def versions() -> dict[str, str]:
    """Return the versions of what took part."""
    found = {"prunus": prunus.__version__, "torch": str(torch.__version__), "numpy": metadata.version("numpy")}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["torch-pruning"] = metadata.version("torch-pruning")
    return found
