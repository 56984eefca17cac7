"""How often a channel is not zero."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.calibration import measured
from prunus.criteria.values import LayerValues


def apoz(layer: LayerValues) -> Tensor:
    """Return 1 − the fraction of zeros of each channel after its non-linearity, (C_out,) in [0, 1].

    The average percentage of zeros of network trimming (Hu et al. 2016, arXiv:1607.03250), turned round. A channel that
    meets no non-linearity scores 1: nothing makes it zero.

    Raises:
        ConfigError: nothing was measured: there is no calibration.
    """
    return 1 - torch.nan_to_num(measured(layer.zero_fraction, "zero_fraction", "apoz", layer.name), nan=0.0)
