"""What a channel delivers to the layers that consume it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunus.criteria.calibration import measured
from prunus.criteria.values import LayerValues
from prunus.errors import ConfigError

VARIANTS = ("auto", "calibrated", "data-free")


def delivered_energy(layer: LayerValues, variance: str = "auto") -> Tensor:
    """Return Σ over the consumers of Var(x_c)·‖a·W_next[:, c]‖² for each channel, (C_out,), ≥ 0.

    x_c is the channel as a consumer sees it, a = γ/√(σ² + ε) the consumer's own BatchNorm scale, 1 without one: fusion
    on both sides of the feature map. This is our reconstruction in the family of the layer-fusion feature coefficient
    of Lu and Yuan 2019 (doi:10.16451/j.cnki.issn1003-6059.201911010), whose full text is not public.

    A channel that no layer with a weight consumes (attention's queries) scores its data-free variance alone; where a
    consumer's variance could not be measured, the data-free one takes its place.

    Args:
        layer: the layer's values.
        variance: ``"calibrated"``, measured on calibration images; ``"data-free"``, in closed form from the layer's
            own BatchNorm: γ² of N(β, γ²), and where a ReLU or a relative of it follows directly, that of its positive
            part; or ``"auto"``, calibrated where there are images and data-free where there are none. Without a
            BatchNorm the data-free variance is that of N(b, ‖W_c‖²), what the layer makes of inputs of variance 1.
            Nothing says how large they are, so that the energies are divided by the layer's mean then, which is of the
            order of 1 behind a BatchNorm.

    Raises:
        ConfigError: there is no such variant; or it is the calibrated one, and there is no calibration.
    """
    if variance not in VARIANTS:
        raise ConfigError(f"delivered_energy: there is no variance {variance!r}; it is one of {', '.join(VARIANTS)}.")
    if layer.consumers is None:
        raise ConfigError(f"delivered_energy needs consumers of layer {layer.name!r}, which prunus.score fills in.")
    own = data_free_variance(layer)
    energy, is_consumed = torch.zeros_like(own), torch.zeros(len(own), dtype=torch.bool)
    is_measured = variance == "calibrated" or (
        variance == "auto" and any(c.variance is not None for c in layer.consumers)
    )
    for consumer in layer.consumers:
        seen = own[consumer.channels]
        if is_measured:
            found = measured(consumer.variance, "variance", "delivered_energy", layer.name)
            seen = torch.where(found.isnan(), seen, found)
        energy.index_add_(0, consumer.channels, seen * consumer.energy)
        is_consumed[consumer.channels] = True
    energy = torch.where(is_consumed, energy, own)
    if layer.norm is None and not (is_measured and layer.consumers):
        energy /= energy.mean().clamp_min(torch.finfo(energy.dtype).tiny)
    return energy


def data_free_variance(layer: LayerValues) -> Tensor:
    """Return the variance of each channel after BatchNorm, and after ReLU where one follows, (C_out,)."""
    if layer.norm is not None:
        mean, spread = layer.norm.beta, layer.norm.gamma.abs()
    else:
        spread = torch.linalg.vector_norm(layer.weight.flatten(1), dim=1)
        mean = torch.zeros_like(spread) if layer.bias is None else layer.bias
    return rectified_variance(mean, spread) if layer.rectified else spread.square()


def rectified_variance(mean: Tensor, spread: Tensor) -> Tensor:
    """Return the variance of max(0, X) for X ~ N(mean, spread²).

    With z = mean/spread, E = mean·Φ(z) + spread·φ(z) and E[max(0, X)²] = (mean² + spread²)·Φ(z) + mean·spread·φ(z).
    """
    ratio = (mean / spread).nan_to_num(nan=0.0)  # ±∞ where nothing varies, as large numbers
    below: Tensor = torch.special.ndtr(ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    first = mean * below + spread * density
    second = (mean.square() + spread.square()) * below + mean * spread * density
    return (second - first.square()).clamp_min(0)
