"""The sum of a filter's absolute weights."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.values import LayerValues


def l1_norm(layer: LayerValues) -> Tensor:
    """Return ‖W_c‖₁ of each filter, (C_out,), ≥ 0 (Li et al. 2017, arXiv:1608.08710)."""
    norms: Tensor = torch.linalg.vector_norm(layer.weight.flatten(1), ord=1, dim=1)
    return norms
