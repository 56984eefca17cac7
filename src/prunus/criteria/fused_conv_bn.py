"""Method B's score: the size of a filter once its BatchNorm is folded into it."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.values import LayerValues
from prunus.errors import ConfigError


def fused_conv_bn(layer: LayerValues, norm: int = 2, constant: bool = False) -> Tensor:
    """Return the layer-fusion feature coefficient ‖a_c·W_c‖ of each channel, (C_out,), a_c = γ_c/√(σ_c² + ε).

    It does not change when a filter is rescaled and σ follows, as the network's function does not either; the plain
    norm does. Without a BatchNorm that keeps running statistics right after the layer, a = 1. This is our
    reconstruction of Lu and Yuan 2019 (doi:10.16451/j.cnki.issn1003-6059.201911010), whose full text is not public.

    Args:
        layer: the layer's values.
        norm: 1 or 2.
        constant: add the size of the fused constant part, the absolute value of β_c + a_c·(b_c − μ_c).

    Raises:
        ConfigError: `norm` is neither 1 nor 2.
    """
    if norm not in (1, 2):
        raise ConfigError(f"fused_conv_bn: norm is {norm!r}; it is 1 or 2.")
    scale, offset = _fold(layer)
    filters = layer.weight.flatten(1)
    size: Tensor = scale.abs() * torch.linalg.vector_norm(filters, ord=norm, dim=1)
    return size + offset.abs() if constant else size


def _fold(layer: LayerValues) -> tuple[Tensor, Tensor]:
    """Return a and the fused constant part, (C_out,) each."""
    channels = layer.weight.shape[0]
    bias = layer.weight.new_zeros(channels) if layer.bias is None else layer.bias
    norm = layer.norm
    if norm is None or norm.var is None or norm.mean is None:
        return torch.ones_like(bias), bias
    scale = norm.gamma / (norm.var + norm.eps).sqrt()
    return scale, norm.beta + scale * (bias - norm.mean)
