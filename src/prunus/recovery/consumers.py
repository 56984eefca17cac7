"""Which layers lost input channels, which of their filters and inputs stayed, and where a constant can go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError
from prunus.graph.channels import ChannelGraph, Layer
from prunus.graph.members import named_tensors
from prunus.plan import PruningPlan
from prunus.recovery.report import RecoveredLayer
from prunus.recovery.watching import LayerCall, run_watched
from prunus.surgery import Selection, selections

NO_PLACE = "it has neither a bias nor a BatchNorm with running statistics right behind it"
BATCH_STATISTICS = "the BatchNorm behind it takes the statistics of the batch, which no constant changes"


@dataclass(frozen=True)
class Consumer:
    """A convolution or linear layer that lost input channels.

    `rows`, (kept filters,), says which filters of the original the pruned layer has; `lost`, (kept filters, C_in /
    groups), which inputs each of them no longer sees, of those of its group in the original. `constant` names the bias
    or running mean that can take a constant, None with the reason in `why_none`; `is_mean` where it is a running mean.
    """

    name: str
    weight: str
    rows: Tensor
    lost: Tensor
    filters: int
    constant: str | None
    is_mean: bool = False
    why_none: str = ""

    @property
    def takes_constant(self) -> bool:
        """Whether a constant that is added to the layer's output can be kept, or does not matter."""
        return self.constant is not None or self.why_none == BATCH_STATISTICS


@dataclass(frozen=True)
class Consumers:
    """The layers that lost input channels, in the order of execution, and those that nothing can be done for."""

    found: tuple[Consumer, ...]
    left: tuple[RecoveredLayer, ...]


def find_consumers(
    model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan, example: Tensor
) -> Consumers:
    """Find the layers that lost input channels.

    Args:
        model: a copy of the original in evaluation mode.
        pruned: what `prunus.remove` made of it, whatever was done to its values since.
        graph: the original's channel graph.
        plan: which channels stay.
        example: what the original is run on, to see which layers run in which order.

    Raises:
        PlanError: the plan does not fit the graph.
        SurgeryError: the model, the graph and the pruned network do not belong together.
    """
    chosen = selections(model, graph, plan)
    _check_pruned(pruned, chosen)
    layers = {layer.weight: layer for layer in graph.layers}
    losses = {n: pair for n in layers if (pair := _losses(chosen[n], graph.tensors[n].shape, layers[n])) is not None}
    calls: dict[str, LayerCall] = {}

    def heard(call: LayerCall) -> None:
        calls.setdefault(call.weight, call)

    uses = run_watched(model, example, heard)
    order = [*calls, *(name for name in layers if name not in calls)]
    found: list[Consumer] = []
    left: list[RecoveredLayer] = []
    norms = Counter(layer.norm.mean for layer in graph.layers if layer.norm is not None)
    for weight in (name for name in order if name in losses):
        layer = layers[weight]
        reason = _unusable(layer, calls.get(weight), uses)
        if reason:
            left.append(RecoveredLayer(layer.name, (), reason))
            continue
        call = calls[weight]
        constant, is_mean, why = _place(layer, call, uses, norms)
        found.append(Consumer(layer.name, weight, *losses[weight], call.out.shape[1], constant, is_mean, why))
    return Consumers(tuple(found), tuple(left))


def _losses(selection: Selection, shape: Sequence[int], layer: Layer) -> tuple[Tensor, Tensor] | None:
    """Return the kept filters and which inputs each of them lost; None where none did, or the layer is transposed."""
    numbers = torch.arange(torch.Size(shape).numel()).view(*shape)
    kept = selection.take(numbers)
    if kept.dim() < 2 or not kept.numel() or layer.transposed:
        rows = torch.arange(0)
        return (rows, rows) if layer.transposed and kept.shape[0] < shape[0] else None
    kept = kept.flatten(2)[:, :, 0] if kept.dim() > 2 else kept  # (filters, inputs): numbers of first kernel elements
    inner = torch.Size(shape[2:]).numel()
    rows, columns = kept[:, 0] // (shape[1] * inner), kept // inner % shape[1]
    lost = torch.ones(len(rows), shape[1], dtype=torch.bool).scatter_(1, columns, False)
    return (rows, lost) if bool(lost.any()) else None


def _unusable(layer: Layer, call: LayerCall | None, uses: Counter[str]) -> str:
    """Say why nothing can be done for a layer; nothing where something can."""
    if layer.transposed:
        return "it is a transposed convolution, or its weight is stored as (C_in, C_out)"
    if call is None:
        return "no convolution or linear layer with this weight, as it is stored, runs in evaluation mode"
    if uses[layer.weight] > 1:
        return f"its weight is used {uses[layer.weight]} times in one forward pass"
    return ""


def _place(
    layer: Layer, call: LayerCall, uses: Counter[str], norms: Counter[str | None]
) -> tuple[str | None, bool, str]:
    """Return where a constant that is added to a layer's output can go, and why it cannot."""
    if call.bias is not None:
        return (call.bias, False, "") if uses[call.bias] == 1 else (None, False, "its bias is used several times")
    if layer.bias is not None:
        return None, False, "its bias is computed"
    if layer.norm is None:
        return None, False, NO_PLACE
    mean = layer.norm.mean
    if mean is None:
        return None, False, BATCH_STATISTICS
    if uses[mean] != 1 or norms[mean] != 1:
        return None, False, "the BatchNorm behind it normalises other layers too"
    return mean, True, ""


def _check_pruned(pruned: nn.Module, chosen: dict[str, Selection]) -> None:
    held = dict(named_tensors(pruned))
    for name, selection in chosen.items():
        shape = tuple(held[name].shape) if name in held else "missing"
        if shape != tuple(selection.shape):
            raise SurgeryError(
                f"the pruned network is not what this plan makes of the original: {name} is {shape} there and should "
                f"be {tuple(selection.shape)}."
            )
