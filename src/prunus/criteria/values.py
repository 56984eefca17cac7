"""What a criterion is given: one layer's tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NormValues:
    """The BatchNorm after a layer, (C_out,) each: γ is 1 and β is 0 where it is not affine.

    `mean` and `var` are None where it keeps no running statistics.
    """

    gamma: Tensor
    beta: Tensor
    mean: Tensor | None
    var: Tensor | None
    eps: float


@dataclass(frozen=True)
class LayerValues:
    """One layer that produces channels, in float64 on the CPU.

    `weight` is (C_out, C_in/groups, kH, kW) or (C_out, C_in), also for a transposed convolution. `zero_fraction`,
    (C_out,), is how often each channel is zero after its non-linearities, NaN where it meets none; None where nothing
    was measured.
    """

    name: str
    weight: Tensor
    bias: Tensor | None = None
    norm: NormValues | None = None
    zero_fraction: Tensor | None = None


Criterion = Callable[[LayerValues], Tensor]
"""Scores a layer's channels: (C_out,), higher = keep. A pure function, whose result follows a permutation of them."""
