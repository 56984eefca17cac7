"""The criteria by name, and what each one wants when its layers meet."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from torch import Tensor

from prunus.criteria.apoz import apoz
from prunus.criteria.bn_scale import bn_scale
from prunus.criteria.channel_sparsity import channel_sparsity
from prunus.criteria.delivered_energy import delivered_energy
from prunus.criteria.fpgm import fpgm
from prunus.criteria.fused_conv_bn import fused_conv_bn
from prunus.criteria.group_norm import group_norm
from prunus.criteria.hrank import hrank
from prunus.criteria.l1_norm import l1_norm
from prunus.criteria.l2_norm import l2_norm
from prunus.criteria.random import random
from prunus.criteria.refit_error import refit_error
from prunus.criteria.taylor import taylor
from prunus.criteria.values import Criterion
from prunus.errors import ConfigError

Reduce = Literal["mean", "max", "min", "sum", "first"]
Normalize = Literal["none", "mean", "max", "gaussian", "size", "cost", "latency"]

CRITERIA: dict[str, Callable[..., Tensor]] = {
    "channel_sparsity": channel_sparsity,
    "fused_conv_bn": fused_conv_bn,
    "delivered_energy": delivered_energy,
    "refit_error": refit_error,
    "l1_norm": l1_norm,
    "l2_norm": l2_norm,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "group_norm": group_norm,
    "apoz": apoz,
    "hrank": hrank,
    "taylor": taylor,
    "random": random,
}

NEEDS: dict[str, Mapping[str, Mapping[str, object]]] = {
    "channel_sparsity": {"zero_fraction": {"degree": "activation"}},
    "delivered_energy": {"consumers": {}, "variance": {"variance": "calibrated"}},
    "refit_error": {"refit_error": {}},
    "group_norm": {"coupled_norm": {}},
    "apoz": {"zero_fraction": {}},
    "hrank": {"feature_rank": {}},
    "taylor": {"first_order": {}},
}
"""Which optional fields of LayerValues a criterion looks at, each with the options that this is for; none: with any.

Nothing else is measured. ``"variance"`` is that of the consumers; `calibration.py` says which fields need images, and
which labels.
"""

WELCOME: dict[str, Mapping[str, Mapping[str, object]]] = {"delivered_energy": {"variance": {"variance": "auto"}}}
"""What a criterion looks at where there are images, and does without where there are none; as in NEEDS."""

FIELDS = ("zero_fraction", "feature_rank", "first_order", "consumers", "variance", "coupled_norm", "refit_error")
"""All that can be needed."""

NORMALIZE: dict[str, Normalize] = {
    "random": "none",
    "taylor": "none",
    "delivered_energy": "none",
    "refit_error": "cost",
}
"""How scores compare across layers unless the caller says so; ``"mean"`` where a name is not here.

Also for the sparsity index, though it lies in [0, 1]: shares of zeros after ReLU differ from layer to layer more than
from channel to channel, and ranked as they are they empty whole layers. For the weight degree it makes no difference.
A change of the loss compares across layers as it is; energy was measured to rank best so. How far the outputs move is
what a budget is paid with: of refit_error the least for the MACs saved goes first.
"""


def normalization(criterion: object, normalize: Normalize | None) -> Normalize:
    """Return how scores are normalised: as asked for, or else the criterion's own way."""
    return normalize or (NORMALIZE.get(criterion, "mean") if isinstance(criterion, str) else "mean")


REDUCE: dict[str, Reduce] = {"random": "first"}
"""How members of one coupled channel join; ``"mean"`` where a name is not here.

The mean of several random numbers lies near one half: widths with many members would never be pruned by the control.
"""

AS_STORED = frozenset({"l1_norm"})
"""Criteria that look at weights alone, and compute in float64 from a float32 weight as it is stored.

A copy in float64, and the values of the BatchNorms behind, would take longer to read than the score does.
"""


def get_criterion(criterion: str | Criterion, **options: Any) -> Criterion:
    """Return a criterion by name, or the caller's own function, with its options filled in.

    Raises:
        ConfigError: the name or an option is unknown; the message gives the nearest and all that there are.
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ConfigError(f"there is no criterion {criterion!r}{_near(criterion, list(CRITERIA))}")
        criterion = CRITERIA[criterion]
    if not callable(criterion):
        raise ConfigError(f"a criterion is a name or a function of LayerValues, not {type(criterion).__name__}.")
    if not options:
        return criterion
    known = accepted_options(criterion)
    for option in options:
        if known is not None and option not in known:
            name = getattr(criterion, "__name__", "the criterion")
            raise ConfigError(f"{name} has no option {option!r}{_near(option, known)}")
    return functools.partial(criterion, **options)


def accepted_options(criterion: Callable[..., Tensor]) -> list[str] | None:
    """Return the names of a criterion's options: its parameters after the first; None where it takes any."""
    parameters = list(inspect.signature(criterion).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def needed(criterion: str | Criterion, options: Mapping[str, Any], has_images: bool) -> frozenset[str]:
    """Return the optional fields that a criterion looks at with these options, none for your own.

    They are those of NEEDS, and, where there are images to measure on, of WELCOME.

    Raises:
        ConfigError: the name or an option is unknown.
    """
    function: Any = get_criterion(criterion, **options)
    given: dict[str, object] = {}
    while isinstance(function, functools.partial):
        given = {**function.keywords, **given}
        function = function.func
    name = next((name for name, known in CRITERIA.items() if known is function), "")
    if not name:
        return frozenset()
    defaults = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()}
    chosen = defaults | given
    return frozenset(
        field
        for table in ((NEEDS, WELCOME) if has_images else (NEEDS,))
        for field, when in table.get(name, {}).items()
        if all(chosen[option] == value for option, value in when.items())
    )


def check_fields(needs: Collection[str]) -> frozenset[str]:
    """Return what a criterion of one's own needs; a ConfigError names the nearest to a field that there is not."""
    for field in [needs] if isinstance(needs, str) else needs:
        if field not in FIELDS:
            raise ConfigError(f"needs names {field!r}, which no layer has{_near(field, list(FIELDS))}")
    return frozenset([needs] if isinstance(needs, str) else needs)


def _near(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} There are: {', '.join(names)}." if names else ": it has none."
