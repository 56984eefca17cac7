"""The rank of a channel's feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.calibration import measured
from prunus.criteria.values import LayerValues


def hrank(layer: LayerValues) -> Tensor:
    """Return the mean rank of each channel's feature maps over the calibration images, (C_out,), ≥ 0.

    Lin et al. 2020 (arXiv:2002.10179). The maps are those after the non-linearity, or, for a channel that meets none,
    those that convolutions consume. A channel without either scores as the layer's highest, 1 if there is none: nothing
    says that its maps are poor.

    Raises:
        ConfigError: nothing was measured: there is no calibration.
    """
    ranks = measured(layer.feature_rank, "feature_rank", "hrank", layer.name)
    known = ranks[~ranks.isnan()]
    return torch.nan_to_num(ranks, nan=float(known.max()) if len(known) else 1.0)
