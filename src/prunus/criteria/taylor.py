"""How much the loss changes without a filter, to first order."""

from __future__ import annotations

from torch import Tensor

from prunus.criteria.calibration import measured
from prunus.criteria.values import LayerValues


def taylor(layer: LayerValues) -> Tensor:
    """Return (Σ over the filter of weight · gradient)² of each filter, averaged over batches, (C_out,), ≥ 0.

    Molchanov et al. 2019 (arXiv:1906.10771). The gradient is that of each labelled calibration batch's mean
    cross-entropy, in evaluation mode. A filter that the loss does not depend on scores 0.

    Raises:
        ConfigError: nothing was measured: there is no calibration with labels.
    """
    return measured(layer.first_order, "first_order", "taylor", layer.name).square().mean(0)
