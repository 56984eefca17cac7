"""The public names: all there, none a module, none heavier than it must be."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import prunus

EXPECTED = {
    "Budget",
    "CRITERIA",
    "MODELS",
    "SoftPruner",
    "SparseTraining",
    "allocate",
    "build_model",
    "choose_options",
    "compensate",
    "export",
    "load",
    "measure_times",
    "migrate_optimizer",
    "op_rule",
    "open_exported",
    "over_channels",
    "over_space",
    "pointwise",
    "prune",
    "recalibrate",
    "reconstruct",
    "remove",
    "remove_op_rule",
    "save",
    "score",
    "search_widths",
    "trace",
    "verify",
}


@pytest.mark.parametrize("name", prunus.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(prunus, name)
    assert not isinstance(value, ModuleType)
    if callable(value):
        assert (value.__doc__ or "").strip(), f"{name} says nothing of itself"


def test_the_promised_names_are_public() -> None:
    assert set(prunus.__all__) >= EXPECTED
    assert len(set(prunus.__all__)) == len(prunus.__all__)
    assert dir(prunus) == sorted(prunus.__all__)


def test_importing_a_module_does_not_hide_the_function_of_its_name() -> None:
    code = "import prunus, prunus.verify, prunus.api\nassert callable(prunus.verify)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert callable(prunus.verify)
    assert callable(importlib.import_module("prunus.verify").verify)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        prunus.prun  # noqa: B018


def test_import_prunus_is_light() -> None:
    code = "import prunus, sys; print([n for n in ('torch', 'numpy', 'pydantic', 'typer', 'rich') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_error_is_a_prunus_error() -> None:
    errors = [getattr(prunus, name) for name in prunus.__all__ if name.endswith("Error")]
    assert len(errors) == 11
    assert all(issubclass(error, prunus.PrunusError) for error in errors)
    assert issubclass(prunus.BudgetError, prunus.PlanError)
