"""The forward pass of a training through torch.compile, where that works."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.training.hardware import Compute

Forward = Callable[[Tensor], Tensor]  # batch (N, C, H, W) → logits (N, classes)


def compiled(model: nn.Module, compute: Compute, batch: Tensor, say: Callable[[str], None] | None = None) -> Forward:
    """Compile the forward and backward pass of `model`; the model as it is, with a message, where that fails.

    Everything is compiled here and now, on a batch that trains nothing: running statistics, gradients and random
    states are left as they were. On CUDA small networks wait for the processor between their kernels, so there the
    whole pass becomes CUDA graphs (torch's mode "reduce-overhead").

    Args:
        model: laid out and on its device, which is `compute`'s.
        compute: how it is going to be run.
        batch: as large as those of the training, laid out (N, C, H, W).
        say: takes the message; by default it goes to stderr.

    Returns:
        What to call in the place of `model`, in training mode.
    """
    cuda = compute.device.type == "cuda"

    def whole(images: Tensor) -> Tensor:  # torch wraps a module in one of its own, which hooks would see twice
        logits: Tensor = model(images)
        return logits

    try:
        with warnings.catch_warnings(action="ignore"):  # torch's compiler warns of what torch itself does
            torch.compiler.reset()  # an earlier network's code is of no use, and counts towards dynamo's limit
            how: dict[str, Any] = {"mode": "reduce-overhead"}
            if not cuda:  # torch's compiler would rather have channels_last, where `compute` may have found it unsafe
                how = {"options": {"layout_optimization": compute.memory_format is torch.channels_last}}
            forward: Forward = torch.compile(whole, dynamic=False, **how)
            for _ in range(3 if cuda else 1):  # a CUDA graph is recorded in the second pass, first used in the third
                _rehearse(model, forward, compute, batch)
    except Exception as error:  # a compiler is a large machine, and whatever breaks in it must not end a training
        (say or _to_stderr)(f"--compile: this network is not compiled, and trains as it is: {_reason(error)}")
        return model
    return forward


def _rehearse(model: nn.Module, forward: Forward, compute: Compute, batch: Tensor) -> None:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    devices = [compute.device] if compute.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            model.train()
            with compute.autocast():
                logits = forward(batch)
            torch.autograd.backward(logits.float().sum())
    finally:
        model.train(training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        model.zero_grad()


def _reason(error: BaseException) -> str:
    """Say in one line what a compiler says in a hundred."""
    cause: Any = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
