"""Recovery, distillation and averaging in the main job: carried out, measured, written, and repeated exactly."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import prunus
from prunus import pipeline
from prunus.config import RunConfig
from prunus.data import Split, load_data, normalize
from prunus.files import load_tensors, read_json, save_tensors
from prunus.graph.trace import trace
from prunus.pipeline import recovering
from prunus.pipeline import run as running
from prunus.plan import PruningPlan
from prunus.surgery import remove
from prunus.training import Recipe, evaluate, fit

SETTINGS: dict[str, Any] = {
    "model": "resnet8",
    "data": "digits",
    "macs": 0.4,
    "epochs": 3,
    "finetune_epochs": 0,
    "calibration_images": 256,
    "threads": 1,
    "device": "cpu",
}


def compress(out: Path, **changes: Any) -> tuple[Path, str]:
    """Run the pipeline; return the folder and what was said."""
    said = io.StringIO()
    config = RunConfig.model_validate({**SETTINGS, "out": out, **changes})
    return pipeline.compress(config, Console(file=said, width=200)), said.getvalue()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network."""
    return compress(tmp_path_factory.mktemp("run") / "a")[0] / "dense.safetensors"


def held_out() -> tuple[Split, Any]:
    data = load_data("digits")
    return data.split(0.1, 0), lambda images: normalize(images, data.mean, data.std)


def accuracy(model: nn.Module) -> float:
    split, prepare = held_out()
    return evaluate(model.eval(), split.val_images, split.val_labels, normalize=prepare)["accuracy"]


def plainly_removed(dense: Path, out: Path) -> nn.Module:
    model = prunus.load(dense)
    graph = trace(model, torch.zeros(1, 1, 8, 8))
    return remove(model, graph, PruningPlan.from_json(out / "plan.json"))


def test_every_step_is_measured_and_written(dense: Path, tmp_path: Path) -> None:
    out, said = compress(tmp_path / "a", checkpoint=dense, recover="recalibrate,compensate,reconstruct")
    found = read_json(out / "recovery.json")
    assert found["calibration_images"] == 256
    assert [(row["removal"], row["step"]) for row in found["rows"]] == [
        (1, "removed"),
        (1, "compensate"),
        (1, "reconstruct"),
        (1, "recalibrate"),
    ]
    by_step = {row["step"]: row["val_accuracy"] for row in found["rows"]}
    assert by_step["removed"] == accuracy(plainly_removed(dense, out))
    assert by_step["recalibrate"] == accuracy(prunus.load(out / "model.safetensors"))
    assert by_step["reconstruct"] > by_step["removed"] + 0.3
    assert found["rows"][2]["layers_changed"] == 9
    assert read_json(out / "summary.json")["recovery"] == found["rows"]
    assert f"recover    as removed {by_step['removed']:.2%}" in said
    assert f"recover    reconstruct: {by_step['reconstruct']:.2%}" in said


def test_none_leaves_the_network_as_removed(dense: Path, tmp_path: Path) -> None:
    out, _ = compress(tmp_path / "a", checkpoint=dense, recover="none", calibration_images=1024)
    expected = plainly_removed(dense, out).state_dict()
    for name, tensor in prunus.load(out / "model.safetensors").state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert [row["step"] for row in read_json(out / "recovery.json")["rows"]] == ["removed"]


@pytest.mark.parametrize(
    ("changes", "removals"),
    [
        ({"schedule": "iterative", "rounds": 3, "finetune_epochs": 4}, [1, 2, 3]),
        ({"method": "layer-fusion", "search_epochs": 2}, [1]),
    ],
    ids=["iterative", "layer-fusion"],
)
def test_every_removal_is_recovered(dense: Path, tmp_path: Path, changes: dict[str, Any], removals: list[int]) -> None:
    out, _ = compress(tmp_path / "a", checkpoint=dense, **changes)
    rows = read_json(out / "recovery.json")["rows"]
    assert [(row["removal"], row["step"]) for row in rows] == [
        (number, step) for number in removals for step in ("removed", "reconstruct")
    ]
    assert all(row["layers_changed"] > 0 for row in rows[1::2])
    expected = plainly_removed(dense, out).state_dict()
    small = prunus.load(out / "model.safetensors").state_dict()
    assert not torch.equal(small["layer2.0.conv2.weight"], expected["layer2.0.conv2.weight"])


def test_a_network_that_was_recovered_is_not_recovered_again(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: recovering.Recovery) -> None:
        raise KeyboardInterrupt

    whole, _ = compress(tmp_path / "whole", checkpoint=dense)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recovering.Recovery, "save", interrupted)
        compress(tmp_path / "a", checkpoint=dense)
    stored = tmp_path / "a" / "checkpoints" / "recovered-1.ckpt.safetensors"
    tensors, metadata = load_tensors(stored)

    calls = []
    recover = recovering.recover
    monkeypatch.setattr(recovering, "recover", lambda *args, **kw: calls.append(1) or recover(*args, **kw))
    out, _ = compress(tmp_path / "a", checkpoint=dense)
    assert not calls
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    accuracies = [
        [row["val_accuracy"] for row in read_json(folder / "recovery.json")["rows"]] for folder in (whole, out)
    ]
    assert accuracies[0] == accuracies[1]

    for file in ("summary.json", "model.safetensors", "recovery.json"):
        (out / file).unlink()
    save_tensors(stored, {name: 0 * tensor for name, tensor in tensors.items()}, metadata | {"plan": "another"})
    compress(tmp_path / "a", checkpoint=dense)
    assert calls, "what is stored belongs to another plan"
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_dense_network_is_the_teacher_of_every_training_after_a_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, nn.Module | None, Recipe]] = []

    def watched(model: nn.Module, split: Any, recipe: Recipe, **options: Any) -> Any:
        trained.append((options["stage"], options["teacher"], recipe))
        return fit(model, split, recipe, **options)

    monkeypatch.setattr(running, "fit", watched)
    training = {"epochs": 1, "finetune_epochs": 2, "distill": 0.5, "temperature": 3, "ema": 0.9}
    out, _ = compress(
        tmp_path / "a", schedule="iterative", rounds=2, recover="none", calibration_images=1024, **training
    )
    assert [stage for stage, _, _ in trained] == ["dense", "round-1", "finetune"]
    assert [recipe.ema for _, _, recipe in trained] == [0.9] * 3
    assert [recipe.distill for _, _, recipe in trained] == [0, 0.5, 0.5]
    assert trained[0][1] is None and trained[1][2].temperature == 3
    expected = prunus.load(out / "dense.safetensors").state_dict()
    for _, teacher, _ in trained[1:]:
        assert teacher is not None
        assert all(torch.equal(tensor, expected[name]) for name, tensor in teacher.state_dict().items())
    trained.clear()
    compress(tmp_path / "b", method="layer-fusion", search_epochs=1, **training)
    assert [(stage, recipe.ema, recipe.distill) for stage, _, recipe in trained] == [
        ("dense", 0.9, 0),
        ("search", 0, 0),
        ("finetune", 0.9, 0.5),
    ]


def test_the_same_seed_gives_the_same_plan_and_weights(tmp_path: Path) -> None:
    """Once in this process, and once as a command in another, with another order of Python's sets."""
    options = {"seed": 3, "epochs": 1, "finetune_epochs": 2, "distill": 0.5, "ema": 0.9, "recover": "reconstruct"}
    one, _ = compress(tmp_path / "one", **options)
    flags = [
        word
        for key, value in {**SETTINGS, **options, "out": tmp_path / "two"}.items()
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    subprocess.run(
        [sys.executable, "-m", "prunus", "compress", *flags],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"},
    )
    for name in ("dense.safetensors", "plan.json", "model.safetensors"):
        assert (one / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
