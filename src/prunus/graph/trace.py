"""Run a model on channel labels instead of numbers, and return its channel graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from prunus.collector import uncollected
from prunus.graph.channels import ChannelGraph
from prunus.graph.settle import settled

Inputs = Tensor | Sequence[Any]


def trace(model: nn.Module, example_inputs: Inputs, *, thorough: bool = False) -> ChannelGraph:
    """Find which channels of a model go together, what each costs, and which must stay.

    The model runs on the meta device, in evaluation mode and in training mode: no weight is copied, nothing is
    computed, and the model is left as it was. Where a size is written as a number in the user's code, a smaller network
    is run on the meta device as well: what breaks there is repaired if a module stores the number, and kept whole else.
    A model that asks for the values of tensors runs on its real inputs instead.

    Args:
        model: any module whose forward pass is made of PyTorch operations.
        example_inputs: what the model takes: one tensor (N, C, H, W), or a tuple of arguments; only their shapes and
            types count.
        thorough: run a smaller network in any case, not only where an operation is given sizes.

    Raises:
        TraceError: the model does not run on these inputs.
    """
    with uncollected():
        return settled(model, as_arguments(example_inputs), thorough=thorough)


def as_arguments(example_inputs: Inputs) -> tuple[Any, ...]:
    """Return example inputs as the tuple of arguments that the model is called with."""
    return tuple(example_inputs) if isinstance(example_inputs, (list, tuple)) else (example_inputs,)
