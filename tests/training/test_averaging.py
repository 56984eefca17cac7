"""The moving average of weights: by hand, as what is judged and delivered, and through an interruption."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import FileFormatError
from prunus.files import load_tensors, save_tensors
from prunus.training import Recipe, evaluate
from prunus.training.averaging import average_of
from tests.training.conftest import Images, make_model, normalize
from tests.training.test_resume import interrupted_in

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]


def test_the_average_by_hand() -> None:
    """Step n keeps min(decay, (1 + n) / (10 + n)) of the average: 2/11, 3/12, and then no more than the decay."""
    model = nn.BatchNorm1d(1)
    average = average_of(model, 0.22)
    assert average is not None
    expected: list[float] = []
    for number, value in enumerate((4.0, 15.0, 7.0, 1.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(2 * value)  # type: ignore[union-attr]
            model.num_batches_tracked.fill_(number)  # type: ignore[union-attr]
        average.update_parameters(model)
        kept = (0.0, 2 / 11, 0.22, 0.22)[number]
        expected.append(kept * expected[-1] + (1 - kept) * value if expected else value)
        assert average.module.weight.item() == pytest.approx(expected[-1])
        assert average.module.running_mean.item() == pytest.approx(2 * expected[-1]), "statistics are averaged too"
        assert average.module.num_batches_tracked.item() == number, "counts are copied"
    assert average_of(model, 0.0) is None


def test_the_average_is_what_is_validated_and_delivered(train: Train, recipe: Recipe, images: Images) -> None:
    plain, _ = train(checkpoint_dir=None)
    model, history = train(recipe=dataclasses.replace(recipe, ema=0.9), checkpoint_dir=None)
    found = evaluate(model, images.val_images, images.val_labels, normalize=normalize)
    assert history[-1]["val_loss"] == found["loss"]
    assert not torch.equal(model.state_dict()["0.weight"], plain.state_dict()["0.weight"])
    assert not torch.equal(model.state_dict()["1.running_var"], plain.state_dict()["1.running_var"])
    assert model.state_dict()["1.num_batches_tracked"] == plain.state_dict()["1.num_batches_tracked"] == 20
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert not model.training


def test_the_weights_that_train_do_not_feel_the_average(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    train(checkpoint_dir=tmp_path / "plain")
    model, _ = train(recipe=dataclasses.replace(recipe, ema=0.9), checkpoint_dir=tmp_path / "averaged")
    plain, _ = load_tensors(tmp_path / "plain" / "dense.ckpt.safetensors")
    averaged, _ = load_tensors(tmp_path / "averaged" / "dense.ckpt.safetensors")
    for name, tensor in plain.items():
        assert torch.equal(averaged[name], tensor), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(averaged[f"average/module.{name}"], tensor), name


def test_a_finished_training_gives_its_average_again(train: Train, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, ema=0.9)
    model, _ = train(recipe=recipe)
    again, _ = train(recipe=recipe)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_checkpoint_that_lost_the_average_is_refused(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        train(recipe=recipe, augment=interrupted_in(epoch=2, batches=5))
    path = tmp_path / "checkpoints" / "dense.ckpt.safetensors"
    tensors, metadata = load_tensors(path)
    del tensors["average/n_averaged"]
    save_tensors(path, tensors, metadata)
    model = make_model()
    with pytest.raises(FileFormatError, match="only one of the two has n_averaged"):
        train(model, recipe=recipe)
