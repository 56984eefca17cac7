"""Criteria: what a channel is worth, each a pure function of one layer's values; `score` applies one to a network."""

from __future__ import annotations

from prunus.criteria.registry import CRITERIA, NORMALIZE, REDUCE, get_criterion
from prunus.criteria.scoring import read_layers, score
from prunus.criteria.values import Criterion, LayerValues, NormValues

__all__ = [
    "CRITERIA",
    "NORMALIZE",
    "REDUCE",
    "Criterion",
    "LayerValues",
    "NormValues",
    "get_criterion",
    "read_layers",
    "score",
]
