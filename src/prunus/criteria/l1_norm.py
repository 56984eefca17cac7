"""The sum of a filter's absolute weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunus.criteria.values import LayerValues


def l1_norm(layer: LayerValues) -> Tensor:
    """Return ‖W_c‖₁ of each filter, (C_out,), ≥ 0 (Li et al. 2017, arXiv:1608.08710)."""
    absolute = np.abs(layer.weight.flatten(1).numpy())
    return torch.from_numpy(np.add.reduce(absolute, axis=1, dtype=np.float64))  # quicker than torch's, and as exact
