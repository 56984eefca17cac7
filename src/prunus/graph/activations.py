"""Measure, on real images, how often each channel is zero after its non-linearity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.errors import TraceError
from prunus.graph.channels import Activation, ChannelGraph
from prunus.graph.rules import NONLINEARITIES


def measure_zero_fractions(model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor]) -> npt.NDArray[np.float64]:
    """Return the fraction of zeros of every coupled channel after its non-linearities, averaged over those it meets.

    This is APoZ (Hu et al. 2016, arXiv:1607.03250), for any network: the k-th non-linearity of a real forward pass is
    the k-th of the trace, which knows its channels.

    Args:
        model: the network that `graph` was traced from; it runs in evaluation mode and gets its own mode back.
        graph: its channel graph.
        batches: inputs as the model takes them, (N, C, H, W) each, on the model's device.

    Returns:
        Fractions in [0, 1], (channel_count,); NaN for a channel that meets no non-linearity.

    Raises:
        TraceError: there is no batch.
    """
    watch = _ZeroCounter(graph)
    before = {module: module.training for module in model.modules()}
    model.eval()
    count = 0
    try:
        for batch in batches:
            watch.calls = 0
            with torch.no_grad(), watch:
                model(batch)
            count += 1
    finally:
        for module, mode in before.items():
            module.training = mode
    if not count:
        raise TraceError(
            "measuring activations needs at least one batch; pass calibration=images, an (N, C, H, W) tensor."
        )
    with np.errstate(invalid="ignore"):
        return watch.zeros / np.where(watch.seen > 0, watch.seen, np.nan)


class _ZeroCounter(TorchDispatchMode):
    """Counts zeros by channel in the results of the non-linearities that the trace numbered."""

    def __init__(self, graph: ChannelGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.activations: dict[int, Activation] = {activation.index: activation for activation in graph.activations}
        self.zeros = np.zeros(graph.channel_count)
        self.seen = np.zeros(graph.channel_count)
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in NONLINEARITIES:
            activation = self.activations.get(self.calls)
            self.calls += 1
            if activation is not None:
                self._count(out, activation)
        return out

    def _count(self, out: Tensor, activation: Activation) -> None:
        others = [axis for axis in range(out.dim()) if axis != 1]
        fractions = (out == 0).double().mean(others).cpu().numpy()
        alive = activation.channels >= 0
        np.add.at(self.zeros, activation.channels[alive], fractions[alive] * out.shape[0])
        np.add.at(self.seen, activation.channels[alive], out.shape[0])
