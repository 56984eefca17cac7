"""When to remove what: once, in rounds, or found during training."""

from __future__ import annotations

from prunus.methods.choice import Choice
from prunus.methods.dynamic import DynamicSearch
from prunus.methods.masks import mask_channels
from prunus.methods.own_loop import EpochChoice, SoftPruner
from prunus.methods.penalties import PENALTIES
from prunus.methods.schedules import Recover, Removal, carry_out, iterative, one_shot

__all__ = [
    "PENALTIES",
    "Choice",
    "DynamicSearch",
    "EpochChoice",
    "Recover",
    "Removal",
    "SoftPruner",
    "carry_out",
    "iterative",
    "mask_channels",
    "one_shot",
]
