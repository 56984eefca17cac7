"""Run a network as far as one layer, and to where its output is added to what is there already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.findings import tensors_in
from prunus.graph.running import UNSEEN, plainly
from prunus.recovery.watching import LayerCall, LayerWatch

_aten = torch.ops.aten
_NORMS = (_aten.native_batch_norm, _aten.cudnn_batch_norm)
_SUMS = (_aten.add, _aten.add_)


@dataclass(frozen=True)
class Captured:
    """A layer's call, and what its output meets next.

    `beside`, of the output's shape, is what the output is added to, if that was there before the layer ran (the
    shortcut of a residual block); `scale`, (C_out,), what the output is multiplied by until then, by a BatchNorm.
    """

    call: LayerCall
    beside: Tensor | None = None
    scale: Tensor | None = None


def capture(model: nn.Module, batch: Tensor, weight: str) -> Captured:
    """Run a network until the output of this weight's layer is used by something other than its BatchNorm.

    Raises:
        LookupError: the layer does not run on this batch.
    """
    watch = _Follow(model, weight)
    try:
        with plainly(), watch:
            model(batch)
    except _Enough:
        pass
    if watch.call is None:
        raise LookupError(weight)
    return Captured(watch.call, watch.beside, watch.scale)


class _Enough(BaseException):
    """What was waited for has been seen; no `except Exception` of a forward pass holds it up."""


class _Follow(LayerWatch):
    """Follows the output of one layer through its BatchNorm to a sum, and stops the forward pass there."""

    def __init__(self, model: nn.Module, weight: str) -> None:
        super().__init__(model, self._met)
        self.weight = weight
        self.call: LayerCall | None = None
        self.current: Tensor | None = None
        self.scale: Tensor | None = None
        self.beside: Tensor | None = None
        self.made: dict[int, Tensor] = {}  # since the layer ran; held, so that no id is given twice
        self.normed = False

    def _met(self, call: LayerCall) -> None:
        if call.weight == self.weight and self.call is None:
            self.call, self.current = call, call.out

    def before(self, func: Any, args: Any) -> None:
        """Stop where something other than a first BatchNorm reads the output."""
        if self.current is None or func in UNSEEN or not any(t is self.current for t in tensors_in(args)):
            return
        op = func.overloadpacket
        if op in _NORMS and self.scale is None and args[0] is self.current and args[4] is not None and not args[5]:
            gamma = torch.ones_like(args[4]) if args[1] is None else args[1]
            self.scale, self.normed = gamma / (args[4] + args[7]).sqrt(), True
            return
        if op in _SUMS and len(args) == 2:
            other = args[1] if args[0] is self.current else args[0]
            same = isinstance(other, Tensor) and other.shape == self.current.shape
            if same and id(other) not in self.made:
                self.beside = other.clone()
        raise _Enough

    def after(self, out: Any) -> None:
        """Note what has been made since the layer ran, and go on from the BatchNorm's result."""
        if self.current is not None:
            self.made.update((id(tensor), tensor) for tensor in tensors_in(out))
            if self.normed:
                self.current, self.normed = tensors_in(out)[0], False
