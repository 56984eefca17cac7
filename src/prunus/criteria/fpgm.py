"""How far a filter is from the others of its layer."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.values import LayerValues


def fpgm(layer: LayerValues) -> Tensor:
    """Return Σ_j ‖W_c − W_j‖₂ of each filter, (C_out,), ≥ 0: filters near the geometric median are redundant.

    He et al. 2019 (arXiv:1811.00250). Distances are between the weights themselves, with their signs: a filter is far
    from its negative.
    """
    filters = layer.weight.flatten(1)
    return torch.cdist(filters, filters).sum(1)
