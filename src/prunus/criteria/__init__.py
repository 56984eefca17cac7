"""Criteria: what a channel is worth, each a pure function of one layer's values; `score` applies one to a network."""

from __future__ import annotations

from prunus.criteria.calibration import ON_IMAGES, ON_LABELS, Calibration
from prunus.criteria.reading import read_layers
from prunus.criteria.registry import CRITERIA, NEEDS, NORMALIZE, REDUCE, get_criterion, needed
from prunus.criteria.scoring import score, score_each
from prunus.criteria.values import ConsumerValues, Criterion, LayerValues, NormValues

__all__ = [
    "CRITERIA",
    "NEEDS",
    "NORMALIZE",
    "ON_IMAGES",
    "ON_LABELS",
    "REDUCE",
    "Calibration",
    "ConsumerValues",
    "Criterion",
    "LayerValues",
    "NormValues",
    "get_criterion",
    "needed",
    "read_layers",
    "score",
    "score_each",
]
