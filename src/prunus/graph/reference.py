"""Run the original with the removed channels silenced: what a pruned network must equal."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.errors import TraceError
from prunus.graph.channels import ChannelGraph, Ids, Keep, Site
from prunus.graph.findings import name_of, tensors_in
from prunus.graph.running import DispatchMode, decomposed, on_meta
from prunus.graph.shapes import result_of

_CONVOLUTION = torch.ops.aten.convolution.default
_OPERANDS = {"aten.addmm": 1, "aten.baddbmm": 1}


class ReferenceMode(DispatchMode):
    """Silences removed channels where a layer consumes them, and computes statistics over the kept ones alone."""

    def __init__(self, graph: ChannelGraph, keep: Keep) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.keep = keep
        self.sites = {(site.op, site.index): site for site in graph.sites}
        self.on_meta = graph.runner is None or graph.runner.is_meta
        self.counts: Counter[str] = Counter()
        self.met = 0
        self.mixing: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = decomposed(self, func, args, kwargs)
        if out is not NotImplemented:
            return out
        name = name_of(func)
        site = self.sites.get((name, self.counts[name]))
        self.counts[name] += 1
        if site is None:
            return self._laid_out(func, args, kwargs or {})
        self.met += 1
        if site.gathers:
            return self._gathered(func, args, kwargs or {}, site)
        if site.operands[0]:
            place = _OPERANDS.get(name, 0)
            mask = self._mask(site.operands[0], args[place])
            args = [*args]
            args[place] = torch.where(torch.from_numpy(mask).to(args[place].device), args[place], 0)
        return self._laid_out(func, args, kwargs or {})

    def _laid_out(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation, and lay its result out in memory as the trace saw it: products go by that.

        The CPU keeps channels last where the meta device does not, in a padding, say.
        """
        out = func(*args, **kwargs)
        if not self.on_meta or not isinstance(out, Tensor) or out.dim() != 4 or func.is_view:
            return out
        if (out.is_contiguous() and func is not _CONVOLUTION) or any(out is arg for arg in args):
            return out
        args, kwargs = on_meta(tuple(args), kwargs)
        said = result_of(func, args, kwargs)
        said = func(*args, **kwargs) if said is None else said
        if said.stride() == out.stride():
            return out
        return torch.empty_strided(said.shape, said.stride(), dtype=out.dtype, device=out.device).copy_(out)

    def _mask(self, fields: tuple[Ids, ...], tensor: Tensor) -> Any:
        mask = np.ones((1,) * tensor.dim(), np.bool_)
        for field in fields:
            if field.ndim != tensor.dim() or any(
                n not in (1, m) for n, m in zip(field.shape, tensor.shape, strict=True)
            ):
                raise TraceError("the network runs differently on these inputs than it did when it was traced.")
            mask = mask & self.keep[field]
        return mask

    def _gathered(self, func: Any, args: Any, kwargs: dict[str, Any], site: Site) -> Any:
        """Run an operation on what stays of its operands, and put the result where it came from."""
        if not any(bool((~self.keep[own]).any()) for fields in site.operands for own in fields):
            return func(*args, **kwargs)
        self.mixing.append(site.op)
        operands = iter(zip(site.operands, site.runs, strict=False))
        args = _mapped(args, lambda tensor: self._taken(tensor, *next(operands)))
        args = _resized(site.op, list(args))
        out = func(*args, **kwargs)
        results = [
            self._put_back(result, fields, runs)
            for result, fields, runs in zip(tensors_in(out), site.results, site.runs[len(site.operands) :], strict=True)
        ]
        return results[0] if isinstance(out, Tensor) else type(out)(results)

    def _taken(self, tensor: Tensor, fields: tuple[Ids, ...], runs: tuple[int, ...]) -> Tensor:
        """Return what stays of an operand, whose fields' channels run along these axes."""
        self._mask(fields, tensor)
        pairs = list(zip(fields, runs, strict=True))
        several = [(self.keep[own], run) for own, run in pairs if sum(size > 1 for size in own.shape) > 1]
        single: dict[int, Any] = {}
        for own, run in pairs:
            if own.size == own.shape[run]:  # an axis may number two channels at once; what stays are those of both
                single[run] = single.get(run, True) & self.keep[own].reshape(-1)
        for axis, kept in single.items():
            places = np.flatnonzero(kept)
            tensor = tensor.index_select(axis, torch.from_numpy(places).to(tensor.device))
            several = [(k.take(places, axis) if k.shape[axis] > 1 else k, run) for k, run in several]
        for kept, known in several:
            shape, run = list(tensor.shape), _carrier(kept, known)
            shape[run] = int(kept.sum()) // (kept.size // kept.shape[run])
            mask = torch.from_numpy(np.broadcast_to(kept, tensor.shape).copy()).to(tensor.device)
            order = [a for a in range(tensor.dim()) if a != run] + [run]
            moved = tensor.permute(order)[mask.permute(order)].reshape([shape[a] for a in order])
            tensor = moved.permute([order.index(a) for a in range(tensor.dim())])
        return tensor

    def _put_back(self, tensor: Tensor, fields: tuple[Ids, ...], runs: tuple[int, ...]) -> Tensor:
        if not fields:
            return tensor
        shape = list(tensor.shape)
        mask = np.ones((1,) * tensor.dim(), np.bool_)
        several = []
        for field, run in zip(fields, runs, strict=True):
            axes = [axis for axis, size in enumerate(field.shape) if size > 1]
            for axis in axes:
                shape[axis] = field.shape[axis]
            mask = mask & self.keep[field]
            several += [(self.keep[field], run)] if len(axes) > 1 else []
        run = _carrier(*several[0]) if several else 0
        full = tensor.new_ones(shape)  # what went is used by nothing; zeros might be divided by
        order = [a for a in range(tensor.dim()) if a != run] + [run]
        flags = torch.from_numpy(np.broadcast_to(mask, shape).copy()).to(tensor.device)
        full.permute(order)[flags.permute(order)] = tensor.permute(order).reshape(-1)
        return full


def _carrier(kept: Any, known: int) -> int:
    """Return the axis that is shortened: along the others every index keeps as many; the known one where it can be."""
    axes = [axis for axis, size in enumerate(kept.shape) if size > 1]
    if len(axes) == 1:
        return int(axes[0])
    for axis in sorted(axes, key=lambda a: (a != known, -kept.shape[a], -a)):
        counts = kept.sum(axis=axis)
        if (counts == counts.flat[0]).all():
            return int(axis)
    raise TraceError("the pieces of a tensor keep different numbers of channels.")


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(item, change) for item in value])
    return value


def _resized(op: str, args: list[Any]) -> list[Any]:
    """Change the arguments that count channels to what stays of the operands."""
    if op in ("aten.native_layer_norm", "aten._fused_rms_norm"):
        args[1] = list(args[0].shape[args[0].dim() - len(args[1]) :])
    elif op == "aten.native_group_norm":
        args[4] = args[0].shape[1]
    return args
