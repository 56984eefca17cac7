"""When to remove what: once, in rounds, or found during training."""

from __future__ import annotations

from prunus.methods.calibrated import GRIDS, OptionsChoice, TriedOptions, choose_options
from prunus.methods.choice import Choice
from prunus.methods.dynamic import DynamicSearch
from prunus.methods.masks import mask_channels
from prunus.methods.own_loop import EpochChoice, SoftPruner
from prunus.methods.penalties import PENALTIES
from prunus.methods.schedules import Recover, Removal, carry_out, iterative, one_shot
from prunus.methods.sparse import RHO_SCHEDULES, SparseTraining

__all__ = [
    "GRIDS",
    "PENALTIES",
    "RHO_SCHEDULES",
    "Choice",
    "DynamicSearch",
    "EpochChoice",
    "OptionsChoice",
    "Recover",
    "Removal",
    "SoftPruner",
    "SparseTraining",
    "TriedOptions",
    "carry_out",
    "choose_options",
    "iterative",
    "mask_channels",
    "one_shot",
]
