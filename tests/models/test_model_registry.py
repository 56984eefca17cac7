"""Finding models by name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

import prunus.models
from prunus.errors import ModelError
from prunus.models import MODELS, build_model


def builders() -> dict[str, object]:
    """Every public function of a family's file that takes a number of classes."""
    folder = Path(prunus.models.__file__).parent
    families = [importlib.import_module(f"prunus.models.{path.stem}") for path in folder.glob("[!_]*.py")]
    return {
        name: function
        for family in families
        for name, function in inspect.getmembers(family, inspect.isfunction)
        if function.__module__ == family.__name__ and "num_classes" in inspect.signature(function).parameters
        if not name.startswith("_") and name != "build_model"
    }


def test_every_builder_is_registered_under_its_own_name() -> None:
    assert builders() == MODELS


def test_the_names_that_are_promised() -> None:
    resnets = {f"resnet{depth}{shortcut}" for depth in (20, 32, 44, 56, 110) for shortcut in ("", "_pad")}
    others = {"vgg16_bn", "vgg19_bn", "googlenet", "shufflenetv2", "densenet40", "squeezenet", "resnet8"}
    assert resnets | others | {"mobilenetv2", "mobilenetv2_half"} <= MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_builders_take_the_same_keywords_with_the_same_defaults(name: str) -> None:
    defaults = {p.name: p.default for p in inspect.signature(MODELS[name]).parameters.values()}
    assert defaults == {"num_classes": 10, "in_channels": 3}


@pytest.mark.parametrize("typed", ["rensnet20", "ResNet20", "resnet-20"])
def test_a_near_miss_is_told_the_name_and_all_names(typed: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(typed)
    message = str(caught.value)
    assert message.startswith(
        f"There is no model named {typed!r}. Did you mean 'resnet20'? The models are: densenet40, "
    )
    assert all(name in message for name in MODELS)


def test_a_far_miss_is_told_all_names_and_no_guess() -> None:
    with pytest.raises(ModelError) as caught:
        build_model("transformer")
    assert str(caught.value).startswith("There is no model named 'transformer'. The models are: densenet40, ")


@pytest.mark.parametrize("wrong", ["num_classes", "in_channels"])
def test_a_count_below_one_is_refused(wrong: str) -> None:
    with pytest.raises(ModelError, match=f"^resnet8: {wrong} is 0, and must be at least 1.$"):
        build_model("resnet8", **{wrong: 0})
