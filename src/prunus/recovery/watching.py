"""See what goes into a layer and what comes out, in a real forward pass, also where forward calls functions alone."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.graph.findings import tensors_in
from prunus.graph.fitting import plain_tensors
from prunus.graph.members import named_tensors
from prunus.graph.running import UNSEEN, DispatchMode, decomposed, plainly
from prunus.graph.uses import Names

_aten = torch.ops.aten


@dataclass(frozen=True)
class LayerCall:
    """One call of a convolution, x (N, C_in, …) → out (N, C_out, …), or a linear layer, (rows, C_in) → (rows, C_out).

    `weight` and `bias` are names of the network's tensors; `bias` is None where there is none, or a computed one.
    `linear` is False for a convolution; `padding` and the like are empty for a linear layer.
    """

    weight: str
    bias: str | None
    x: Tensor
    out: Tensor
    linear: bool
    transposed: bool = False
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


class LayerWatch(DispatchMode):
    """Tells `heard` of every convolution and linear layer whose weight is a tensor of the network, as it is run.

    `uses` counts how many operations read each of the network's tensors.
    """

    def __init__(self, model: nn.Module, heard: Callable[[LayerCall], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.tensors: Mapping[str, Tensor] = dict(named_tensors(model))
        self.names = Names(self.tensors)
        self.heard = heard
        self.uses: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = decomposed(self, func, args, kwargs)
        if out is not NotImplemented:
            return out
        self.before(func, args)
        out = func(*args, **(kwargs or {}))
        self.after(out)
        if func in UNSEEN or func.is_view:
            return out
        for tensor in tensors_in((args, tuple((kwargs or {}).values()))):
            name = self.names.of(tensor)
            if name is not None:
                self.uses[name] += 1
        call = self._call(func.overloadpacket, args, out)
        if call is not None:
            self.heard(call)
        return out

    def before(self, func: Any, args: Any) -> None:
        """Hear of an operation that is about to run."""

    def after(self, out: Any) -> None:
        """Hear of the result of an operation."""

    def _call(self, op: Any, args: Any, out: Any) -> LayerCall | None:
        if op is _aten.convolution:
            weight = self._name(args[1])
            if weight is None:
                return None
            stride, padding, dilation = (tuple(values) for values in args[3:6])
            bias = self._name(args[2])
            return LayerCall(weight, bias, args[0], out, False, args[6], stride, padding, dilation, args[8])
        if op is _aten.mm or op is _aten.addmm:
            bias, x, product = (None, *args) if op is _aten.mm else args[:3]
            weight = self._name(product.t())
            return None if weight is None else LayerCall(weight, self._name(bias), x, out, True)
        return None

    def _name(self, tensor: Tensor | None) -> str | None:
        """Return the name of the network's tensor that this is, as a whole."""
        name = None if tensor is None else self.names.of(tensor)
        if tensor is None or name is None:
            return None
        own = self.tensors[name]
        same = tensor.shape == own.shape and tensor.stride() == own.stride() and tensor.data_ptr() == own.data_ptr()
        return name if same else None


def run_watched(model: nn.Module, batch: Tensor, heard: Callable[[LayerCall], None]) -> Counter[str]:
    """Run a network, tell `heard` of its layers, and return how many operations read each of its tensors."""
    watch = LayerWatch(model, heard)
    with plainly(), watch:
        model(batch)
    return watch.uses


def scratch_copy(model: nn.Module) -> nn.Module:
    """Return a copy to measure on, in evaluation mode, so that nothing that forward sets reaches the original."""
    return copy.deepcopy(model, plain_tensors(model)).eval()


def result_copy(model: nn.Module) -> nn.Module:
    """Return a copy to change and hand back, in the modes of the original."""
    return copy.deepcopy(model, plain_tensors(model))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give back the random states of torch, Python and numpy, whatever a forward pass draws."""
    cpu, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
