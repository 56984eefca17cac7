"""Method A's score: how sparse a channel is, with an L2 term."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunus.criteria.values import LayerValues
from prunus.errors import ConfigError

DEGREES = ("weight", "activation", "hoyer")


def channel_sparsity(layer: LayerValues, degree: str = "weight", t: float = 0.1, lam: float = 1.0) -> Tensor:
    """Return 1 − p for each channel, (C_out,) in [0, 1]: p is the regularised sparsity index, high = redundant.

    With the sparsity degree s and the L2 term r = ‖W_c‖₂ / max_j ‖W_j‖₂, p = 1 − ((1 − s) + λ·r) / (1 + λ). This is our
    reconstruction of Bao et al. 2019 (doi:10.1109/siprocess.2019.8868491), whose full text is not public.

    Args:
        layer: the layer's values.
        degree: ``"weight"``, the fraction of weights of at most t · RMS of the layer; ``"activation"``, the fraction of
            zeros after the non-linearity (APoZ, arXiv:1607.03250), 0 for a channel that meets none, since nothing makes
            it zero there; ``"hoyer"``, (√n − ‖w‖₁/‖w‖₂) / (√n − 1), 1 for a filter of zeros.
        t: threshold of the weight degree, at least 0.
        lam: λ ≥ 0, the weight of the L2 term; 0 is the plain method.

    Raises:
        ConfigError: an option is out of its range, or nothing was measured for the activation degree.
    """
    if not (math.isfinite(lam) and lam >= 0 and math.isfinite(t) and t >= 0):
        raise ConfigError(f"channel_sparsity: t is {t} and lam is {lam}; both must be finite and at least 0.")
    filters = layer.weight.flatten(1)
    norms = filters.square().sum(1).sqrt()
    relative = norms / norms.max().clamp_min(torch.finfo(norms.dtype).tiny)
    kept = (1 - _sparsity(layer, filters, degree, t)) + lam * relative
    return (kept / (1 + lam)).clamp(0, 1)


def _sparsity(layer: LayerValues, filters: Tensor, degree: str, t: float) -> Tensor:
    """Return the sparsity degree of each filter, (C_out,) in [0, 1]."""
    if degree == "weight":
        return (filters.abs() <= t * filters.square().mean().sqrt()).to(filters.dtype).mean(1)
    if degree == "hoyer":
        root = math.sqrt(filters.shape[1])
        if root == 1:
            return (filters[:, 0] == 0).to(filters.dtype)
        ratio = filters.abs().sum(1) / filters.square().sum(1).sqrt()
        return torch.nan_to_num((root - ratio) / (root - 1), nan=1.0).clamp(0, 1)
    if degree != "activation":
        raise ConfigError(f"channel_sparsity: there is no degree {degree!r}; it is one of {', '.join(DEGREES)}.")
    if layer.zero_fraction is None:
        raise ConfigError(
            "channel_sparsity: the activation degree needs images to measure on; pass calibration=images, (N, C, H, W)."
        )
    return torch.nan_to_num(layer.zero_fraction, nan=0.0)
