"""Between removal and training: what can be repaired from a few images, without labels and without gradients."""

from __future__ import annotations

from prunus.recovery.compensation import compensate
from prunus.recovery.recalibration import recalibrate
from prunus.recovery.reconstruction import reconstruct
from prunus.recovery.report import RecoveredLayer, RecoveryReport
from prunus.recovery.steps import STEPS, Recovered, Repair, check_repair, even_batches, in_order, recover, repaired

__all__ = [
    "STEPS",
    "Recovered",
    "RecoveredLayer",
    "RecoveryReport",
    "Repair",
    "check_repair",
    "compensate",
    "even_batches",
    "in_order",
    "recalibrate",
    "reconstruct",
    "recover",
    "repaired",
]
