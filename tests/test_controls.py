"""Controls of a comparison in the main job: new weights in the found structure, one split for several seeds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import prunus
from prunus import pipeline
from prunus.config import RunConfig, load_config
from prunus.errors import ConfigError
from prunus.models.initialise import reinitialise
from prunus.pipeline.run import Run, prepare
from prunus.pipeline.run_folder import RunFolder
from prunus.stopping import Stopping
from prunus.training import Recipe

SETTINGS: dict[str, Any] = {
    "model": "resnet8",
    "data": "digits",
    "macs": 0.4,
    "epochs": 2,
    "batch_size": 64,
    "threads": 1,
    "device": "cpu",
}


def compress(out: Path, **changes: Any) -> Path:
    config = RunConfig.model_validate({**SETTINGS, "out": out, **changes})
    return pipeline.compress(config, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with seed 0."""
    return compress(tmp_path_factory.mktemp("run") / "first", finetune_epochs=0)


def test_new_weights_are_drawn_in_the_structure_found_and_trained_as_the_dense_ones_were(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[dict[str, torch.Tensor], Recipe]] = []
    train = Run.train

    def watched(run: Any, model: Any, recipe: Recipe, stage: str, *rest: Any, **options: Any) -> None:
        trained.append(({key: value.clone() for key, value in model.state_dict().items()}, recipe))
        train(run, model, recipe, stage, *rest, **options)

    monkeypatch.setattr(Run, "train", watched)
    out = compress(
        tmp_path / "scratch", checkpoint=first / "dense.safetensors", reinitialize=True, learning_rate=0.1, distill=0.5
    )
    ((start, recipe),) = trained
    expected = prunus.load(first / "model.safetensors")  # as removed
    torch.manual_seed(0)
    reinitialise(expected)
    assert all(torch.equal(start[key], value) for key, value in expected.state_dict().items())
    assert (recipe.epochs, recipe.schedule, recipe.learning_rate, recipe.distill) == (2, "one-cycle", 0.1, 0.5)
    summary = (out / "summary.json").read_text()
    assert '"finetune": 2' in summary
    after = prunus.load(out / "model.safetensors").state_dict()
    assert not torch.equal(after["conv1.weight"], start["conv1.weight"])


def test_new_weights_have_seen_no_images() -> None:
    model = prunus.models.build_model("resnet8", num_classes=10)
    model.train()(torch.randn(4, 3, 8, 8))
    assert model.state_dict()["bn1.running_mean"].abs().sum() > 0
    reinitialise(model)
    assert model.state_dict()["bn1.running_mean"].abs().sum() == 0
    assert model.state_dict()["bn1.num_batches_tracked"] == 0


def test_the_split_of_a_checkpoint_can_be_kept_under_another_seed(first: Path, tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO())

    def held_out(**changes: Any) -> torch.Tensor:
        config = RunConfig.model_validate({**SETTINGS, "out": tmp_path, **changes})
        return prepare(config, RunFolder(tmp_path), torch.device("cpu"), quiet, Stopping()).split.val_images

    mine = held_out()
    assert torch.equal(held_out(seed=1, split_seed=0), mine)
    assert not torch.equal(held_out(seed=1), mine)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"recover": "none"}, "--recover none does nothing here: with --reinitialize"),
        ({"schedule": "iterative"}, "--schedule iterative trains between its rounds"),
    ],
)
def test_what_new_weights_make_idle_is_refused(flags: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(flags={"model": "resnet8", "data": "digits", "macs": "0.5", "reinitialize": True, **flags})
    assert says in str(caught.value)


def test_new_weights_take_no_recovery() -> None:
    config = load_config(flags={"model": "resnet8", "data": "digits", "macs": "0.5", "reinitialize": True})
    assert config.recovery_steps == ()
