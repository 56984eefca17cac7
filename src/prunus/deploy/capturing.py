"""A network as a graph of ATen operations (torch.export): what every format is written from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunus.deploy.folding import Fold, drop_unused, fold_batchnorm
from prunus.deploy.silent import drop_silent
from prunus.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MAX_BATCH = 65536  # of the files whose batch may vary


@dataclass(frozen=True)
class Captured:
    """A network's graph, in eval mode on the CPU.

    `program` has a batch axis of any length where `any_batch` says so; `single` is the same graph for one image.
    `folds` says which of its tensors were made by folding BatchNorm, and of what.
    """

    module: torch.fx.GraphModule
    program: ExportedProgram
    example: Tensor
    any_batch: bool
    folds: tuple[Fold, ...] = ()

    @property
    def single(self) -> ExportedProgram:
        """Capture the graph for one image."""
        with quietly():
            return torch.export.export(self.module, (self.example[:1],))


def capture(model: nn.Module, input_shape: tuple[int, ...], *, fold: bool = True) -> Captured:
    """Turn a network with one input and one output into a graph; the model is left as it is.

    Args:
        model: the network.
        input_shape: of one example, (C, H, W).
        fold: fold BatchNorm into the layers before it.

    Raises:
        ModelError: torch.export cannot capture it, or it does not return one tensor.
    """
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, *input_shape)
    ready = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    with quietly(), torch.no_grad():
        try:
            output = ready(example)
        except Exception as error:
            raise ModelError(f"the network does not run on images of {input_shape}: {_said(error)}") from error
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the network returns {type(output).__name__}, and a file has one tensor: wrap the network in a module "
                "that returns the logits alone"
            )
        program, any_batch = _export(ready, example)
        module = program.module(check_guards=False)
        assert isinstance(module, torch.fx.GraphModule)
        drop_unused(module)
        folds = fold_batchnorm(module) if fold else ()
        if drop_silent(module):
            left = dict(module.named_parameters())
            folds = tuple(fold for fold in folds if fold.new_weight in left)
        program, any_batch = _export(module, example, any_batch=any_batch)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # lines of code, with the paths of the machine that wrote the file
    return Captured(module, program, example, any_batch, folds)


def _export(model: nn.Module, example: Tensor, *, any_batch: bool = True) -> tuple[ExportedProgram, bool]:
    """Capture with a batch of any length if the network's code allows it, else for one image."""
    if any_batch:
        try:
            shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
            return torch.export.export(model, (example,), dynamic_shapes=shapes), True
        except Exception as error:
            reason = _said(error)
    try:
        return torch.export.export(model, (example[:1],)), False
    except Exception as error:
        raise ModelError(f"torch.export cannot capture the network: {_said(error) or reason}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep other libraries' warnings to their developers from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _said(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
