"""The Euclidean length of a filter."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.values import LayerValues


def l2_norm(layer: LayerValues) -> Tensor:
    """Return ‖W_c‖₂ of each filter, (C_out,), ≥ 0 (as in soft filter pruning, arXiv:1808.06866)."""
    norms: Tensor = torch.linalg.vector_norm(layer.weight.flatten(1), dim=1)
    return norms
