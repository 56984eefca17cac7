"""Whether training mode does to channels what evaluation mode did: then the model need not run a second time.

A module can only differ between the modes if it reads its `training` flag. So these reads are noted while the model
runs in evaluation mode, and each module that made one is run once more by itself, in training mode, on what it was
given.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from prunus.graph.findings import tensors_in


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: what it was given, what it gave, and the steps of the model that it made."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    steps: range


@dataclass
class Readers:
    """Listens to the modules of a run that makes `steps`: keeps the calls of those that read `training`.

    Torch's own that treat every channel alike in both modes are left out. `strangers` says that the flag of a module
    was read while another one ran.
    """

    steps: Sized
    read: set[int] = field(default_factory=set)
    calls: list[ModuleCall] = field(default_factory=list)
    running: list[tuple[int, int]] = field(default_factory=list)
    strangers: bool = False

    def note(self, module: nn.Module) -> None:
        """Note that the flag of a module is read, or set."""
        if self.running and self.running[-1][0] == id(module):
            self.read.add(id(module))
        else:
            self.strangers = True

    def enter(self, module: nn.Module) -> None:
        """Note that a module begins."""
        self.running.append((id(module), len(self.steps)))

    def leave(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """Note that it ends."""
        _, start = self.running.pop()
        if id(module) in self.read and not _is_plain(module):
            self.calls.append(ModuleCall(module, args, kwargs, out, range(start, len(self.steps))))


def _is_plain(module: nn.Module) -> bool:
    """Say whether a module is one of torch's whose training mode gives every channel what evaluation mode gives it."""
    return isinstance(module, (_NormBase, _DropoutNd)) and type(module).__module__.startswith("torch.nn.")


class _Flag:
    """Stands in for the attribute `training` of all modules, and notes whose was read or set."""

    def __init__(self) -> None:
        self.listeners: list[Readers] = []

    def __get__(self, module: nn.Module | None, kind: type) -> bool:
        if module is None or "training" not in module.__dict__:
            raise AttributeError("training")
        self._note(module)
        return module.__dict__["training"]  # type: ignore[no-any-return]

    def __set__(self, module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value
        self._note(module)

    def _note(self, module: nn.Module) -> None:
        for readers in self.listeners:
            readers.note(module)


_FLAG, _LOCK = _Flag(), threading.Lock()


@contextmanager
def noted(readers: Readers) -> Iterator[None]:
    """Let `readers` hear of every read of `training` while the context is open."""
    with _LOCK:
        _FLAG.listeners = [*_FLAG.listeners, readers]
        nn.Module.training = _FLAG  # type: ignore[assignment]
    try:
        yield
    finally:
        with _LOCK:
            _FLAG.listeners = [other for other in _FLAG.listeners if other is not readers]
            if not _FLAG.listeners:
                del nn.Module.training


def repeats(readers: Readers, model: nn.Module, replay: Callable[[ModuleCall], bool]) -> bool:
    """Say whether all modules that read `training` do alike in training mode; `replay` asks one.

    Of modules that differ in nothing but their widths, one is asked.
    """
    if readers.strangers or any(call.module is model for call in readers.calls):
        return False
    known: set[Any] = set()
    for call in tuple(readers.calls):  # a replay is heard as well
        kind = (_kind(call.module), *((t.dtype, *(n > 1 for n in t.shape)) for t in tensors_in(call.args)))
        if kind not in known:
            if not replay(call):
                return False
            known.add(kind)
    return True


def _kind(module: nn.Module) -> Any:
    """Return what tells a module from others of its class: all that it stores, but for widths and values of tensors."""
    sizes = {
        n for held in (module._parameters, module._buffers) for t in held.values() if t is not None for n in t.shape
    }
    stored: list[tuple[str, Any]] = []
    for name, value in vars(module).items():
        form = value.__class__
        if form in _EMPTY and not value:
            continue
        if form is int:
            stored.append((name, "size" if value in sizes else value))
        elif form in _PLAIN:
            stored.append((name, (form, value)))
        elif name == "_modules":
            stored.append((name, tuple((key, child and _kind(child)) for key, child in value.items())))
        elif name in ("_parameters", "_buffers"):
            stored.append((name, tuple((key, None if t is None else t.dim()) for key, t in value.items())))
        else:
            stored.append((name, id(value)))
    return type(module), tuple(stored)


_EMPTY = frozenset({dict, OrderedDict, set, list, tuple})
_PLAIN = frozenset({bool, float, str, bytes, type(None)})
