"""What a criterion is given: one layer's tensors, and what was measured of its channels."""

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
class ConsumerValues:
    """One use of a layer that consumes some of the channels, by the slices of its weight that do, (slices,) each.

    `channels` says which of the producing layer's channels a slice reads, int64: a channel that is flattened has as
    many slices as positions. `energy` is ‖a·W[:, slice]‖², a = γ/√(σ² + ε) the consumer's own BatchNorm scale, 1
    without one that keeps running statistics. `variance` is that of the slice's input over images and positions, NaN
    where it was not met; None where nothing was measured.
    """

    name: str
    channels: Tensor
    energy: Tensor
    variance: Tensor | None = None


@dataclass(frozen=True)
class LayerValues:
    """One layer that produces channels, in float64 on the CPU.

    The fields from `zero_fraction` on are None where nothing was measured: each is there if the criterion needs it
    (`NEEDS`, or ``needs=`` for your own) and, for those that are measured on images, if there are some.

    Attributes:
        name: the layer's name.
        weight: (C_out, C_in/groups, kH, kW) or (C_out, C_in), also for a transposed convolution.
        bias: (C_out,), or None.
        norm: the BatchNorm right after the layer, or None.
        rectified: whether a ReLU, or a relative that is zero or nearly so below zero, reads the BatchNorm directly, or
            the layer itself where it has none.
        zero_fraction: (C_out,), how often each channel is zero after its non-linearities; NaN where it meets none.
        feature_rank: (C_out,), the mean rank of a channel's maps after its non-linearities, or, where it meets none, as
            convolutions consume it; NaN where neither is there.
        first_order: (batches, C_out), Σ over a filter of weight · gradient of each labelled batch's mean cross-entropy.
        consumers: the uses of layers that consume some of the channels, depthwise ones left out: their channels go with
            the input's. Their `variance` is there if ``"variance"`` is needed.
        coupled_norm: (C_out,), the L2 norm of all parameter slices that go with the channel, wherever they are.
        refit_error: (C_out,), how far outputs move, squared, without the channel once its readers are refitted
            (`prunus.criteria.elimination`); NaN where nothing reads it.
    """

    name: str
    weight: Tensor
    bias: Tensor | None = None
    norm: NormValues | None = None
    zero_fraction: Tensor | None = None
    feature_rank: Tensor | None = None
    first_order: Tensor | None = None
    consumers: tuple[ConsumerValues, ...] | None = None
    coupled_norm: Tensor | None = None
    refit_error: Tensor | None = None
    rectified: bool = False


Criterion = Callable[[LayerValues], Tensor]
"""Scores a layer's channels: (C_out,), higher = keep. A pure function, whose result follows a permutation of them."""
