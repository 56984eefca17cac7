"""Run a model on channel labels instead of numbers, and return its channel graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunus.errors import TraceError
from prunus.graph.assemble import assemble
from prunus.graph.channels import ChannelGraph
from prunus.graph.findings import Call, Findings, tensors_in
from prunus.graph.rules import apply
from prunus.graph.tape import Tape

Inputs = Tensor | Sequence[Any]


def trace(model: nn.Module, example_inputs: Inputs) -> ChannelGraph:
    """Find which channels of a model go together, what each costs, and which must stay.

    The model runs on the meta device, in evaluation mode and in training mode: no weight is copied, nothing is
    computed, and the model is left as it was.

    Args:
        model: any module whose forward pass is made of PyTorch operations.
        example_inputs: what the model takes: one tensor (N, C, H, W), or a tuple of arguments; only their shapes and
            types count.

    Raises:
        TraceError: the model does not run on these inputs, or needs the values of tensors to run.
    """
    args = as_arguments(example_inputs)
    tape = Tape()
    tensors = _meta_state(model)
    for name, tensor in tensors.items():
        tape.label_tensor(name, tensor)
    evaluated = Findings(batch=_batch(args))
    _run(model, tensors, [_to_meta(arg) for arg in args], tape, evaluated, training=False)
    # Twice the batch: BatchNorm refuses to train on one value a channel.
    trained = Findings(batch=2 * _batch(args), sizes=evaluated.sizes)
    _run(model, tensors, [_to_meta(arg, copies=2) for arg in args], tape, trained, training=True)
    saved = frozenset(model.state_dict(keep_vars=True))
    return assemble(tape, evaluated, tensors, saved, frozenset(name for name, _ in model.named_parameters()))


def as_arguments(example_inputs: Inputs) -> tuple[Any, ...]:
    """Return example inputs as the tuple of arguments that the model is called with."""
    return tuple(example_inputs) if isinstance(example_inputs, (list, tuple)) else (example_inputs,)


class LabelMode(TorchDispatchMode):
    """Sees every ATen operation that the model makes and carries labels through it."""

    def __init__(self, tape: Tape, findings: Findings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.tape = tape
        self.findings = findings

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        out = func(*args, **kwargs)
        apply(self.tape, self.findings, Call(func, args, kwargs, out))
        return out


def _run(
    model: nn.Module, tensors: Mapping[str, Tensor], args: list[Any], tape: Tape, findings: Findings, *, training: bool
) -> None:
    """Run the model once in one mode and freeze what reaches its outputs."""
    with _mode(model, training), _module_stack(model, tape.modules), torch.no_grad(), torch.device("meta"):
        try:
            with LabelMode(tape, findings):
                result = functional_call(model, dict(tensors), tuple(args))
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
            where = (tape.modules[-1][0] if tape.modules else "") or "the model itself"
            mode = "training" if training else "evaluation"
            shapes = [tuple(tensor.shape) for tensor in tensors_in(args)]
            raise TraceError(
                f"the model could not be run on channel labels in {mode} mode: {error} (in {where}). It was given "
                f"inputs of shapes {shapes}; check example_inputs, and that forward does not need the values of "
                "tensors (.item(), if x > 0)."
            ) from error
    tape.modules.clear()
    tape.freeze_tensors(
        [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)], "it is an output of the model"
    )


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module in one mode and give each its own back."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, value in before.items():
            module.training = value


@contextmanager
def _module_stack(model: nn.Module, stack: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Keep `stack` the modules that are running, outermost first, while the context is open."""
    handles = []

    def enter(name: str) -> Any:
        return lambda module, _args: stack.append((name, module))

    def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _meta_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer as an empty meta tensor; names that share a tensor share it here too."""
    known: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in [*_parameters(model), *model.named_buffers(remove_duplicate=False)]:
        if id(tensor) not in known:
            known[id(tensor)] = torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format)
        state[name] = known[id(tensor)]
    return state


def _to_meta(value: Any, copies: int = 1) -> Any:
    """Return a tensor's shape on the meta device, its batch `copies` times as large; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    shape = (value.shape[0] * copies, *value.shape[1:]) if value.dim() else ()
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _batch(args: Sequence[Any]) -> int:
    """Return how many examples the first tensor argument holds."""
    tensors = tensors_in(list(args))
    if not tensors or not tensors[0].dim():
        raise TraceError(
            "example_inputs holds no tensor with a batch axis; give one such as torch.randn(1, 3, 32, 32)."
        )
    return int(tensors[0].shape[0])
