"""The scale of the BatchNorm after a layer."""

from __future__ import annotations

from torch import Tensor

from prunus.criteria.values import LayerValues
from prunus.errors import ConfigError


def bn_scale(layer: LayerValues) -> Tensor:
    """Return |γ_c| of each channel, (C_out,), ≥ 0 (Network Slimming, Liu et al. 2017, arXiv:1708.06519).

    Raises:
        ConfigError: the layer has no BatchNorm right after it, so that there is nothing to read.
    """
    if layer.norm is None:
        raise ConfigError(
            f"bn_scale needs a BatchNorm right after every layer, and {layer.name!r} has none; "
            "use fused_conv_bn, which then takes the filter alone, or l1_norm."
        )
    return layer.norm.gamma.abs()
