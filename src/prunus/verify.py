"""Prove a removal: the pruned network equals the original whose removed channels are silenced at their consumers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from prunus.graph.channels import ChannelGraph
from prunus.graph.fitting import plain_tensors
from prunus.graph.reference import ReferenceMode
from prunus.graph.running import plainly
from prunus.graph.trace import Inputs, as_arguments
from prunus.plan import PruningPlan

TOLERANCE = 1e-10
"""Largest relative error, in float64, that counts as equal; rounding alone stays some ten thousand times below it."""


FLOAT32_TOLERANCE = 1e-4
"""The same in float32, for a network whose forward pass does not run in float64."""


@dataclass(frozen=True)
class Verification:
    """What the comparison found.

    `max_relative_error` is max |pruned − silenced| / max |silenced| over all outputs; NaN if the pruned network did not
    run. `failure` says why it did not pass. `mixing` names the operations, such as ``"aten.native_layer_norm"``, that
    take statistics over channels: the reference computes those over the kept channels alone.
    """

    passed: bool
    max_relative_error: float
    tolerance: float
    dtype: str
    samples: int
    outputs: int
    failure: str = ""
    mixing: tuple[str, ...] = ()


def silence(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """Return a copy of the model, as large as before, whose consumers ignore the channels that `plan` drops."""
    keep = plan.keep_array(graph)
    silenced = copy.deepcopy(model, plain_tensors(model))
    tensors = dict(
        [*silenced.named_parameters(remove_duplicate=False), *silenced.named_buffers(remove_duplicate=False)]
    )
    for weight, axis in {(use.weight, use.input_axis) for use in graph.contractions if use.input_axis is not None}:
        for field in graph.tensors[weight].fields:
            if field.shape[axis] > 1:
                with torch.no_grad():
                    tensors[weight].mul_(torch.from_numpy(keep[field]).to(tensors[weight].device))
    return silenced


def verify(model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan, inputs: Inputs) -> Verification:
    """Compare a pruned network with the silenced original on real inputs, in float64 and evaluation mode.

    Args:
        model: the original, as large as when `graph` was traced.
        pruned: what `prunus.remove` made of it. Neither model is changed.
        graph: the original's channel graph.
        plan: which channels were kept.
        inputs: what the model takes: a tensor (N, C, H, W), or a tuple of arguments.

    Returns:
        The verdict; nothing is raised for a difference.
    """
    try:
        return _compared(model, pruned, graph, plan, inputs, torch.float64)
    except _NotSoPrecise:  # its forward pass makes tensors of a type of its own
        return _compared(model, pruned, graph, plan, inputs, torch.float32)


class _NotSoPrecise(Exception):
    """The original does not run in this type."""


def _compared(
    model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan, inputs: Inputs, dtype: torch.dtype
) -> Verification:
    """Compare in one type of number."""
    args = tuple(_converted(arg, dtype) for arg in as_arguments(inputs))
    samples = next((len(arg) for arg in args if isinstance(arg, Tensor) and arg.dim()), 0)
    tolerance = TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE
    mode = ReferenceMode(graph, plan.keep_array(graph))
    outputs = 0

    def verdict(passed: bool, error: float, reason: str) -> Verification:
        mixing = tuple(dict.fromkeys(mode.mixing))
        name = str(dtype).removeprefix("torch.")
        return Verification(passed, error, tolerance, name, samples, outputs, reason, mixing)

    with plainly(), _default_dtype(dtype), _InDouble() if dtype == torch.float64 else nullcontext():
        whole = _prepared(model, dtype)
        try:
            with mode:
                reference = _outputs(whole, args)
        except RuntimeError as cause:
            if dtype == torch.float64:
                raise _NotSoPrecise from cause
            raise
        del whole
        outputs = len(reference)
        if mode.met != len(graph.sites):
            return verdict(False, float("nan"), "the original runs differently here than it did when it was traced")
        try:
            found = _outputs(_prepared(pruned, dtype), args)
        except Exception as cause:
            return verdict(False, float("nan"), f"the pruned network does not run: {cause}")
    if [out.shape for out in found] != [out.shape for out in reference]:
        reason = f"its outputs have shapes {[tuple(o.shape) for o in found]}, not {[tuple(o.shape) for o in reference]}"
        return verdict(False, float("nan"), reason)
    largest = max((_relative_error(a, b) for a, b in zip(found, reference, strict=True)), default=0.0)
    passed = largest <= tolerance
    return verdict(
        passed, largest, "" if passed else f"outputs differ by {largest:.1e} relative, more than {tolerance:.0e}"
    )


class _InDouble(TorchFunctionMode):
    """Gives float64 where a forward pass asks for a shorter type by name: the proof is about shapes, not rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func in _SHORTENING else func
        kwargs = {key: _lengthened(value) for key, value in (kwargs or {}).items()}
        return func(*map(_lengthened, args), **kwargs)


def _lengthened(value: object) -> object:
    return torch.float64 if isinstance(value, torch.dtype) and value in _SHORT else value


_SHORT = frozenset({torch.float32, torch.float16, torch.bfloat16})
_SHORTENING = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let what the forward pass makes be of this type too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _prepared(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model, plain_tensors(model)).eval().to(dtype)


def _converted(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(_converted(item, dtype) for item in value)
    return {key: _converted(item, dtype) for key, item in value.items()} if isinstance(value, dict) else value


def _outputs(model: nn.Module, args: tuple[object, ...]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(*args)) if isinstance(leaf, Tensor)]


def _relative_error(found: Tensor, reference: Tensor) -> float:
    if not reference.numel():
        return 0.0
    scale = float(reference.abs().max())
    difference = float((found.double() - reference.double()).abs().max())
    if math.isnan(difference):  # a NaN in either is a failure, never equality
        return float("inf")
    return difference / scale if scale > 0 else difference
