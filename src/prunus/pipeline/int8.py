"""The small network as 8-bit integers: rounded after training, and trained with rounding where that costs too much."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.cost import count_cost
from prunus.deploy import FileInfo, Int8Simulation, Quantized, Runner, Samples, open_exported, quantize, save
from prunus.deploy.comparing import random_samples
from prunus.deploy.header import encode_plan
from prunus.errors import ModelError, TrainingError
from prunus.files import atomic_write_bytes, atomic_write_json, read_json
from prunus.pipeline import recipes
from prunus.pipeline.run import Run
from prunus.pipeline.search import plan_of
from prunus.plan import PruningPlan
from prunus.training import evaluate
from prunus.training.evaluate import Predicted, predict_classes

STAGE = "int8"
ACCEPTED_LOSS = 0.005
"""Of accuracy on held-out images, before the network is trained with 8-bit integers simulated."""

_REHEARSED_ON = 2  # images of noise


@dataclass(frozen=True)
class _Candidate:
    """A network, its file with 8-bit integers, and the file's accuracy on the held-out images."""

    network: nn.Module
    quantized: Quantized
    accuracy: float


class _InRuntime(nn.Module):
    """A file in its runtime, in the place of the network that it was made of."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._runner(images.cpu().numpy()))


def rehearse_int8(run: Run) -> None:
    """Quantise the untrained network, so that what cannot work is said now and not after hours of training.

    Raises:
        ConfigError: what writes ONNX files is not installed.
        ModelError: ONNX cannot hold the network, or it cannot be trained with 8-bit integers simulated.
    """
    model = run.build().eval()
    try:
        quantized = quantize(model, _info(run, model), random_samples(run.input_shape, _REHEARSED_ON))
        if run.config.int8_epochs:
            quantized.simulation(model)
    except ModelError as error:
        raise ModelError(f"--int8: {error}") from error


def obtain_int8(run: Run, small: nn.Module) -> None:
    """Write model.int8.onnx, and with it, where it was trained so, model.int8.safetensors; int8.json says how.

    The small network is left as it is.
    """
    if run.folder.int8_record.exists():
        run.say("int8       done before: int8.json")
        run.folder.drop_checkpoint(STAGE)
        return
    whole = _accuracy(run, small)
    first = _candidate(run, small)
    run.say(f"int8       {first.accuracy:.2%} of the held-out images are named right, {whole:.2%} in float32")
    best, second = first, None
    lost = whole - first.accuracy
    if lost > ACCEPTED_LOSS and run.config.int8_epochs:
        run.say(
            f"int8       that is {100 * lost:.2f} points less: training with 8 bits for {run.config.int8_epochs} epochs"
        )
        try:
            second = _trained(run, first)
        except TrainingError as error:
            run.say(f"int8       the training failed, and the file stays as it was: {error}")
        else:
            run.say(f"int8       {second.accuracy:.2%} after the training")
            best = max(first, second, key=lambda found: found.accuracy)
    if best is second:
        save(best.network, run.folder.int8_network, plan=plan_of(run), **run.identity)
    atomic_write_bytes(run.folder.int8, best.quantized.content)
    atomic_write_json(
        run.folder.int8_record,
        {
            "val_accuracy": {
                "float32": whole,
                "rounded": first.accuracy,
                "fine_tuned": None if second is None else second.accuracy,
            },
            "delivered": "fine_tuned" if best is second else "rounded",
            "size_bytes": len(best.quantized.content),
        },
    )
    run.folder.drop_checkpoint(STAGE)


def int8_simulation(run: Run, network: nn.Module) -> Int8Simulation:
    """Make a network into one that can be trained as its file with 8-bit integers computes."""
    return _quantized(run, network).simulation(network)


def read_int8(run: Run) -> dict[str, Any]:
    """Return what int8.json says; empty where the run makes no file with 8-bit integers."""
    found = read_json(run.folder.int8_record, "record of 8-bit integers") if run.config.int8 else {}
    return found if isinstance(found, dict) else {}


def predict_int8(run: Run) -> Predicted:
    """Say what the file with 8-bit integers takes the test images for, in its runtime."""
    network = _InRuntime(open_exported(run.folder.int8, torch.get_num_threads()))
    return predict_classes(network, run.data.test_images, normalize=run.normalize)


def _trained(run: Run, first: _Candidate) -> _Candidate:
    network = copy.deepcopy(first.network)
    simulation = first.quantized.simulation(network)
    run.train(simulation, recipes.int8(run), STAGE)
    # Weights have moved, and ranges with them: which are better, those of now or those that the training saw, differs.
    anew, as_seen = _candidate(run, network), _candidate(run, network, simulation.grids)
    return max(anew, as_seen, key=lambda found: found.accuracy)


def _candidate(run: Run, network: nn.Module, grids: Mapping[str, tuple[float, int]] | None = None) -> _Candidate:
    quantized = _quantized(run, network, grids)
    return _Candidate(network, quantized, _accuracy(run, _InRuntime(quantized.open(torch.get_num_threads()))))


def _quantized(run: Run, network: nn.Module, grids: Mapping[str, tuple[float, int]] | None = None) -> Quantized:
    return quantize(network, _info(run, network, plan_of(run)), Samples(run.calibration()), grids)


def _info(run: Run, network: nn.Module, plan: PruningPlan | None = None) -> FileInfo:
    said, cost = run.identity, count_cost(network, run.proof_inputs()[:1])
    return FileInfo(
        format="onnx",
        model=said["model_name"],
        input_shape=said["input_shape"],
        classes=tuple(said["classes"]),
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        plan=encode_plan(plan),
        params=cost.params,
        macs=cost.macs,
    )


def _accuracy(run: Run, network: nn.Module) -> float:
    """Measure on the CPU, where the files run."""
    return evaluate(network, run.split.val_images, run.split.val_labels, normalize=run.normalize)["accuracy"]
