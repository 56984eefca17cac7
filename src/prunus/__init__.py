"""Prunus makes convolutional networks small: it removes whole channels, proves the removal right, and trains back.

>>> import prunus
>>> result = prunus.prune(model, example_inputs, budget=prunus.Budget(macs=0.5))   # doctest: +SKIP
>>> result.model, result.plan, result.verification                                  # doctest: +SKIP

Names are imported when they are first used, so that `import prunus` and `prunus --help` stay quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunus.allocation import allocate
    from prunus.api import PruneResult, prune
    from prunus.branches import DroppedBranch, choose_branches, drop_branches
    from prunus.budget import Budget
    from prunus.cost import Cost, count_cost, predict_cost
    from prunus.criteria import CRITERIA, score
    from prunus.data import ImageData, load_data
    from prunus.deploy import Exported, export, load, measure_latency, open_exported, save
    from prunus.deploy.layer_times import MeasuredTimes, measure_times
    from prunus.errors import (
        BudgetError,
        ConfigError,
        DataError,
        FileFormatError,
        ModelError,
        PlanError,
        PrunusError,
        RunError,
        SurgeryError,
        TraceError,
        VerificationError,
    )
    from prunus.graph.channels import ChannelGraph
    from prunus.graph.rules.own import op_rule, over_channels, over_space, remove_op_rule
    from prunus.graph.rules.pointwise import pointwise
    from prunus.graph.trace import trace
    from prunus.methods import OptionsChoice, SoftPruner, SparseTraining, TriedOptions, choose_options
    from prunus.migration import migrate_optimizer
    from prunus.models import MODELS, build_model
    from prunus.plan import PruningPlan
    from prunus.recovery import RecoveredLayer, RecoveryReport, compensate, recalibrate, reconstruct
    from prunus.surgery import remove
    from prunus.verify import Verification, verify
    from prunus.width_search import WidthSearch, WidthTrial, search_widths

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "MODELS",
    "Budget",
    "BudgetError",
    "ChannelGraph",
    "ConfigError",
    "Cost",
    "DataError",
    "DroppedBranch",
    "Exported",
    "FileFormatError",
    "ImageData",
    "MeasuredTimes",
    "ModelError",
    "OptionsChoice",
    "PlanError",
    "PruneResult",
    "PruningPlan",
    "PrunusError",
    "RecoveredLayer",
    "RecoveryReport",
    "RunError",
    "SoftPruner",
    "SparseTraining",
    "SurgeryError",
    "TraceError",
    "TriedOptions",
    "Verification",
    "VerificationError",
    "WidthSearch",
    "WidthTrial",
    "__version__",
    "allocate",
    "build_model",
    "choose_branches",
    "choose_options",
    "compensate",
    "count_cost",
    "drop_branches",
    "export",
    "load",
    "load_data",
    "measure_latency",
    "measure_times",
    "migrate_optimizer",
    "op_rule",
    "open_exported",
    "over_channels",
    "over_space",
    "pointwise",
    "predict_cost",
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
]

_HOMES = {
    "prunus.allocation": ("allocate",),
    "prunus.api": ("PruneResult", "prune"),
    "prunus.branches": ("DroppedBranch", "choose_branches", "drop_branches"),
    "prunus.budget": ("Budget",),
    "prunus.cost": ("Cost", "count_cost", "predict_cost"),
    "prunus.criteria": ("CRITERIA", "score"),
    "prunus.data": ("ImageData", "load_data"),
    "prunus.deploy": ("Exported", "export", "load", "measure_latency", "open_exported", "save"),
    "prunus.deploy.layer_times": ("MeasuredTimes", "measure_times"),
    "prunus.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "prunus.graph.channels": ("ChannelGraph",),
    "prunus.graph.rules.own": ("op_rule", "over_channels", "over_space", "remove_op_rule"),
    "prunus.graph.rules.pointwise": ("pointwise",),
    "prunus.graph.trace": ("trace",),
    "prunus.methods": ("OptionsChoice", "SoftPruner", "SparseTraining", "TriedOptions", "choose_options"),
    "prunus.migration": ("migrate_optimizer",),
    "prunus.models": ("MODELS", "build_model"),
    "prunus.plan": ("PruningPlan",),
    "prunus.recovery": ("RecoveredLayer", "RecoveryReport", "compensate", "recalibrate", "reconstruct"),
    "prunus.surgery": ("remove",),
    "prunus.verify": ("Verification", "verify"),
    "prunus.width_search": ("WidthSearch", "WidthTrial", "search_widths"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'prunus' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """The package itself, on which importing the module prunus.verify does not hide the function of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _HOME_OF:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
