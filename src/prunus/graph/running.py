"""Run a model under a watch that sees every operation, on the meta device or on real inputs, and leave it as it was."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from prunus.graph.alike import Readers, noted
from prunus.graph.findings import Call, Findings, tensors_in
from prunus.graph.known import Known
from prunus.graph.labels import varying
from prunus.graph.members import Members
from prunus.graph.rules import apply
from prunus.graph.shapes import result_of
from prunus.graph.tape import Tape

Modules = list[tuple[str, nn.Module]]


UNSEEN = {torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default}
"""What is called or not at torch's pleasure, and does nothing: no step of the model."""


_EMPTY = torch.ops.aten.empty.memory_format


def holds_nothing(func: Any, args: Sequence[Any]) -> bool:
    """Say whether an operation makes an empty tensor, as torch does beside each BatchNorm: no step of the model."""
    return func is _EMPTY and list(args[0]) == [0]


class DispatchMode(TorchDispatchMode):
    """A dispatch mode without torch's guard against the compiler, which takes longer than what is done here."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class LabelMode(DispatchMode):
    """Sees every ATen operation that the model makes and carries labels through it."""

    def __init__(self, tape: Tape, findings: Findings, steps: list[tuple[Call, tuple[str, nn.Module] | None]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.tape = tape
        self.findings = findings
        self.steps = steps
        self.is_meta = True
        self.known: Known | None = None
        self.unknown: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = decomposed(self, func, args, kwargs)
        if out is not NotImplemented:
            return out
        if holds_nothing(func, args):
            return torch.empty(0, dtype=kwargs.get("dtype"), device="meta" if self.is_meta else kwargs.get("device"))
        out = None
        if self.is_meta:
            args, kwargs = on_meta(args, kwargs)
            out = result_of(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        call = Call(func, args, kwargs, out)
        tape = self.tape
        tape.op = call.name
        if func not in UNSEEN:
            tape.calls += 1
            self.findings.counts[tape.op] += 1
            self.steps.append((call, tape.modules[-1] if tape.modules else None))
        if self.known is None or not self.known.covers(tape, call):
            apply(tape, self.findings, call)
            if func not in UNSEEN:
                self.unknown.append(call)
        return out


class FunctionMode(TorchFunctionMode):
    """Sends tensors that are made in forward to the meta device, and hears of the calls whose numbers hide sizes."""

    def __init__(self, tape: Tape | None, *, is_meta: bool) -> None:
        super().__init__()
        self.tape = tape
        self.is_meta = is_meta
        self.made = _device_constructors() if is_meta else frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tape is not None:
            self.tape.given = given_sizes(args) if func in _SIZED else None
        if func in self.made:
            kwargs = {**kwargs, "device": torch.device("meta")}
        elif func is torch.nn.functional.rms_norm:
            _check_rms_norm(self.tape, *args, **kwargs)
        elif self.tape is not None:
            watch = _HIDING.get(func)
            if watch is not None:
                with _disable_current_modes():
                    watch(self.tape, args, kwargs)
        return func(*args, **kwargs)


_SIZED = {Tensor.view, Tensor.reshape, torch.reshape, Tensor.unflatten, torch.unflatten}


def given_sizes(args: Sequence[Any]) -> list[int]:
    """Return the sizes that a call lays a tensor out by."""
    found: list[int] = []
    for arg in args[1:]:
        found += list(arg) if isinstance(arg, (list, tuple)) else [arg]
    return [size if isinstance(size, int) else -1 for size in found]


def _check_rms_norm(tape: Tape | None, x: Tensor, shape: Sequence[int], *_: Any, **__: Any) -> None:
    """Refuse a shape that does not fit, as the operation does on real tensors but not on meta ones."""
    if tape is not None:
        tape.is_risky = True
    elif list(shape) != list(x.shape[x.dim() - len(shape) :]):
        raise RuntimeError(f"rms_norm over {list(shape)} of {list(x.shape)}")


def _attention(tape: Tape, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Freeze what is summed over in attention that divides by the root of its length, which would change."""
    if kwargs.get("scale") is None and len(args) >= 2:
        tape.op = "scaled_dot_product_attention"
        for tensor in (args[0], args[1]):
            for own in tape.read(tensor):
                if own.shape[-1] > 1:
                    tape.freeze(own, "attention divides by the root of the length of its queries")


def _multi_head(tape: Tape, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    tape.op = "multi_head_attention_forward"
    for tensor in tensors_in(list(args)):
        tape.freeze_tensors([tensor], "nn.MultiheadAttention divides by the root of a stored width")


def _instance_norm(tape: Tape, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Note what a norm without parameters counts: it only warns where its number is wrong."""
    name, module = tape.modules[-1] if tape.modules else ("", None)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and not any(module.state_dict()):
        for own in tape.read(args[0]):
            if varying(own) == {1}:
                tape.sizes.append((name, "num_features", own.reshape(-1)))


_HIDING: dict[Any, Callable[[Tape, Sequence[Any], Mapping[str, Any]], None]] = {
    torch.nn.functional.scaled_dot_product_attention: _attention,
    torch.nn.functional.multi_head_attention_forward: _multi_head,
    torch.nn.functional.instance_norm: _instance_norm,
}


def on_meta(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments with every tensor and device on the meta device."""
    if kwargs and kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("meta")}
    for arg in args:
        if isinstance(arg, Tensor):
            if not arg.is_meta:
                return _moved(args), kwargs
        elif isinstance(arg, (list, tuple)) and any(isinstance(item, Tensor) and not item.is_meta for item in arg):
            return _moved(args), kwargs
    return args, kwargs


def _moved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.device.type == "meta" else torch.empty_like(value, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item) for item in value)
    return value


def run(
    model: nn.Module,
    state: Mapping[int, Tensor],
    args: Sequence[Any],
    modes: Sequence[Any],
    modules: Modules,
    *,
    training: bool,
    members: Members | None = None,
    readers: Readers | None = None,
    then: Callable[[], None] | None = None,
) -> Any:
    """Run the model once in one mode, `state` for its tensors by id; give it back its modes and random state.

    `readers` hear of what reads the modes; `then` is called at the end, when the model is not yet as it was.
    """
    members = members or Members(model)
    with ExitStack() as stack:
        stack.enter_context(restored(members, training, state))
        stack.enter_context(_module_stack(members, modules, readers))
        stack.enter_context(plainly())
        if readers is not None:
            stack.enter_context(noted(readers))
        out = called(model, args, {}, modes)
        if then is not None:
            then()
        return out


def called(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], modes: Sequence[Any]) -> Any:
    """Call a module under some modes, the last of them innermost."""
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        return module(*args, **kwargs)


@contextmanager
def plainly() -> Iterator[None]:
    """Record no gradients, and let every operation come as the simple ones that it is made of."""
    with torch.inference_mode(False), torch.no_grad(), attention_by_products():
        yield


def decomposed(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """Run what a forward pass in inference mode calls whole, as its parts; NotImplemented for what has none."""
    if not torch.is_inference_mode_enabled():
        return NotImplemented
    with mode:
        return func.decompose(*args, **(kwargs or {}))


@contextmanager
def attention_by_products() -> Iterator[None]:
    """Let attention run as the products and the softmax that it is made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def restored(members: Members, training: bool, state: Mapping[int, Tensor]) -> Iterator[None]:
    """Put every module in one mode, `state` in the place of its tensors; undo both, and what forward set."""
    before = [(module, dict(vars(module))) for module in members.modules.values()]
    held_inside = [
        (value, copy.copy(value))
        for module, attributes in before
        if not _is_torchs(type(module))  # type: ignore[arg-type]  # a class is hashable
        for name, value in attributes.items()
        if value.__class__ in _CONTAINERS and name[0] != "_"
    ]
    holders: list[dict[str, Any]] = [held for module, _ in before for held in (module._parameters, module._buffers)]
    tensors = [(held, dict(held)) for held in holders]
    generator, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        for module, _ in before:
            vars(module)["training"] = training
        for held, old in tensors:
            held.update({key: state[id(tensor)] for key, tensor in old.items() if tensor is not None})
        yield
    finally:
        for held, old in tensors:
            held.clear()
            held.update(old)
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        for value, inside in held_inside:
            value.clear()
            value.extend(inside) if isinstance(value, list) else value.update(inside)
        torch.set_rng_state(generator)
        random.setstate(python)
        np.random.set_state(numpy)


_CONTAINERS = frozenset({list, dict, set, OrderedDict, defaultdict})


@lru_cache(maxsize=1024)
def _is_torchs(kind: type) -> bool:
    """Say whether a class is one of torch's layers, which keep nothing in containers that forward changes."""
    return kind.__module__.startswith("torch.nn.modules.")


@contextmanager
def _module_stack(members: Members, stack: Modules, readers: Readers | None = None) -> Iterator[None]:
    """Keep `stack` the modules that are running, outermost first, while the context is open."""
    names = {id(module): (name, module) for name, module in members.modules.items()}

    def enter(module: nn.Module, _args: Any) -> None:
        entry = names.get(id(module))
        if entry is not None:
            stack.append(entry)
            if readers is not None:
                readers.enter(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if id(module) in names:
            stack.pop()
            if readers is not None:
                readers.leave(module, args, kwargs, out)

    stack.clear()
    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
            # torch forgets this note of its own, and then takes the hook to be there: torch.compile warns of it.
            _global_forward_hooks_with_kwargs.pop(handle.id, None)


def sized(value: Any, batch: int, old: int, *, is_meta: bool) -> Any:
    """Return an argument, or what is nested in it, with `batch` examples in place of `old`."""
    if isinstance(value, dict):
        return {key: sized(item, batch, old, is_meta=is_meta) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(sized(item, batch, old, is_meta=is_meta) for item in value)
    if not isinstance(value, Tensor):
        return value
    copies = batch // old if value.dim() and value.shape[0] == old else 1
    if not is_meta:
        return torch.cat([value] * copies) if copies > 1 else value.clone()
    if copies > 1:
        return torch.empty((batch, *value.shape[1:]), dtype=value.dtype, device="meta")
    return torch.empty_like(value, device="meta")
