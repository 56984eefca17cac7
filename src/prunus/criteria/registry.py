"""The criteria by name, and what each one wants when its layers meet."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from prunus.criteria.bn_scale import bn_scale
from prunus.criteria.channel_sparsity import channel_sparsity
from prunus.criteria.fused_conv_bn import fused_conv_bn
from prunus.criteria.l1_norm import l1_norm
from prunus.criteria.l2_norm import l2_norm
from prunus.criteria.random import random
from prunus.criteria.values import Criterion
from prunus.errors import ConfigError

Reduce = Literal["mean", "max", "min", "sum", "first"]
Normalize = Literal["none", "mean", "max"]

CRITERIA: dict[str, Callable[..., Tensor]] = {
    "channel_sparsity": channel_sparsity,
    "fused_conv_bn": fused_conv_bn,
    "l1_norm": l1_norm,
    "l2_norm": l2_norm,
    "bn_scale": bn_scale,
    "random": random,
}

NORMALIZE: dict[str, Normalize] = {"random": "none"}
"""How scores compare across layers unless the caller says so; ``"mean"`` where a name is not here.

Also for the sparsity index, though it lies in [0, 1]: shares of zeros after ReLU differ from layer to layer more than
from channel to channel, and ranked as they are they empty whole layers. For the weight degree it makes no difference.
"""

REDUCE: dict[str, Reduce] = {"random": "first"}
"""How members of one coupled channel join; ``"mean"`` where a name is not here.

The mean of several random numbers lies near one half: widths with many members would never be pruned by the control.
"""

AS_STORED = frozenset({"l1_norm"})
"""Criteria that compute in float64 from a float32 weight as it is stored: a copy in float64 takes longer than that."""


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


def _near(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} There are: {', '.join(names)}." if names else ": it has none."
