"""What --recipe stands for: the settings of recipes.yaml, by tier and network."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, get_args

Tier = Literal["cpu", "standard", "strong"]
_ONLY_WITH = {"search_epochs": ("method", "layer-fusion")}  # said of another method, it would be refused


@functools.cache
def read_recipes() -> Mapping[str, list[dict[str, Any]]]:
    """Read recipes.yaml: for every tier, entries with `networks` (patterns), `source` and `settings`."""
    import yaml  # not needed by most commands

    text = resources.files("prunus.config").joinpath("recipes.yaml").read_text(encoding="utf-8")
    found: dict[str, list[dict[str, Any]]] = yaml.safe_load(text)
    return found


def find_recipe(tier: str, model: str) -> dict[str, Any]:
    """Return the entry for a network: the first of the tier that names it."""
    return next(
        entry for entry in read_recipes()[tier] if any(fnmatch.fnmatch(model, name) for name in entry["networks"])
    )


def with_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the settings of the recipe that `values` name beneath them; without one, or with a wrong one, as they are."""
    tier, model = values.get("recipe"), values.get("model")
    if tier not in get_args(Tier) or not isinstance(model, str):
        return dict(values)
    settings = dict(find_recipe(str(tier), model)["settings"])
    for key, (owner, wanted) in _ONLY_WITH.items():
        if values.get(owner) != wanted:
            settings.pop(key, None)
    if str(values.get("from_scratch")).lower() == "true":
        settings.pop("epochs", None)
    if values.get("checkpoint") is not None and str(values.get("finetune_epochs")) == "0":
        settings.pop("ema", None)
    if "epochs" in values and "epochs" in settings:  # a shorter training warms up for less
        settings["warmup_epochs"] *= _number(values["epochs"], settings["epochs"]) / settings["epochs"]
    return settings | dict(values)


def _number(value: object, otherwise: float) -> float:
    """Read a number that is not checked yet; what is wrong with it is said elsewhere."""
    try:
        return float(str(value))
    except ValueError:
        return otherwise
