"""Run a network as far as one layer, and to where its output is added to what is there already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


Heard = Callable[[str, Captured], None]
"""Is told of the layer that has this weight."""


def only(weight: str, run: Callable[[Heard], None]) -> Captured:
    """Return the one layer that `run` tells of; LookupError where it does not."""
    found: list[Captured] = []
    run(lambda _, captured: found.append(captured))
    if not found:
        raise LookupError(weight)
    return found[0]


def capture_all(
    model: nn.Module,
    batch: Tensor,
    weights: Iterable[str],
    heard: Heard,
    run: Callable[[], object] | None = None,
) -> None:
    """Run a network and tell `heard` of each of these weights' layers; stop once all are known.

    That is when a layer's output is about to be used by something other than its BatchNorm. Later operations may change
    in place what is captured, so `heard` copies what it keeps. Layers that do not run on this batch are not told of.

    Args:
        model: the network.
        batch: its input.
        weights: names of the network's tensors.
        heard: is told of the layers.
        run: runs the network, or the part of it that these layers are in; None for the network as it is.
    """
    watch = _Follow(model, weights, heard)
    try:
        with plainly(), watch:
            run() if run is not None else model(batch)
    except _Enough:
        return
    watch.finish()


class _Enough(BaseException):
    """What was waited for has been seen; no `except Exception` of a forward pass holds it up."""


class _Follow(LayerWatch):
    """Follows the outputs of some layers, and stops the forward pass where all have been seen."""

    def __init__(self, model: nn.Module, weights: Iterable[str], heard: Heard) -> None:
        super().__init__(model, self._met)
        self.told = heard
        self.waiting = set(weights)
        self.trails: dict[str, _Trail] = {}

    def _met(self, call: LayerCall) -> None:
        if call.weight in self.waiting:
            self.waiting.remove(call.weight)
            self.trails[call.weight] = _Trail(call)

    def before(self, func: Any, args: Any) -> None:
        """End the trails whose output something other than a first BatchNorm is about to read."""
        if func in UNSEEN or not self.trails:
            return
        read = list(tensors_in(args))
        for weight, trail in list(self.trails.items()):
            if any(tensor is trail.current for tensor in read) and trail.ends_at(func, args):
                self._tell(weight)
        if not self.waiting and not self.trails:
            raise _Enough

    def after(self, out: Any) -> None:
        """Let the trails go on from what has been made."""
        for trail in self.trails.values():
            trail.go_on(list(tensors_in(out)))

    def finish(self) -> None:
        """Tell of the layers whose output nothing read: it is the network's own."""
        for weight in list(self.trails):
            self._tell(weight)

    def _tell(self, weight: str) -> None:
        trail = self.trails.pop(weight)
        self.told(weight, Captured(trail.call, trail.beside, trail.scale))


class _Trail:
    """The output of one layer, followed through its BatchNorm to a sum."""

    def __init__(self, call: LayerCall) -> None:
        self.call = call
        self.current = call.out
        self.scale: Tensor | None = None
        self.beside: Tensor | None = None
        self.made: dict[int, Tensor] = {}  # since the layer ran; held, so that no id is given twice
        self.normed = False

    def ends_at(self, func: Any, args: Any) -> bool:
        """Look at an operation that is about to read the output; False for its first BatchNorm."""
        op = func.overloadpacket
        if op in _NORMS and self.scale is None and args[0] is self.current and args[4] is not None and not args[5]:
            gamma = torch.ones_like(args[4]) if args[1] is None else args[1]
            self.scale, self.normed = gamma / (args[4] + args[7]).sqrt(), True
            return False
        if op in _SUMS and len(args) == 2:
            other = args[1] if args[0] is self.current else args[0]
            same = isinstance(other, Tensor) and other.shape == self.current.shape
            if same and id(other) not in self.made:
                self.beside = other.clone()
        return True

    def go_on(self, out: list[Tensor]) -> None:
        """Note what has been made since the layer ran, and go on from the BatchNorm's result."""
        self.made.update((id(tensor), tensor) for tensor in out)
        if self.normed:
            self.current, self.normed = out[0], False
