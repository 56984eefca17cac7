"""The results of the commonest operations as empty tensors, without asking the meta device: it takes a while there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

aten = torch.ops.aten
_LAST = torch.channels_last

_UNARY = {
    getattr(aten, name).default
    for name in (
        *("relu", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh", "gelu", "mish", "leaky_relu", "clone"),
        *("hardtanh", "elu", "relu6", "exp", "sqrt", "rsqrt", "neg", "softplus"),
    )
    if hasattr(aten, name)
}
_BINARY = {getattr(aten, name).Tensor for name in ("add", "mul", "sub", "div")}
_IN_PLACE = {
    *(
        getattr(aten, name).default
        for name in ("relu_", "hardswish_", "hardsigmoid_", "silu_", "sigmoid_", "hardtanh_")
    ),
    *(getattr(aten, name).Tensor for name in ("add_", "mul_", "sub_", "div_")),
}


def _empty(like: Tensor, shape: Any) -> Tensor:
    """Return a tensor of a shape, laid out in memory as an operation on `like` lays its result out."""
    if like.is_contiguous():
        return torch.empty(shape, dtype=like.dtype, device="meta")
    if len(shape) == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return torch.empty(shape, dtype=like.dtype, device="meta", memory_format=torch.channels_last)
    return torch.empty_like(like) if shape == like.shape else torch.empty(shape, dtype=like.dtype, device="meta")


def _convolution(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, *rest: Any) -> Any:
    transposed, groups = rest[0], rest[2]
    if transposed or x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * groups or x.dtype != weight.dtype:
        return None
    if weight.shape[0] % groups:
        return None
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    if min(sizes, default=1) <= 0:
        return None
    last = x.dim() == 4 and any(not t.is_contiguous() and suggest_memory_format(t) is _LAST for t in (x, weight))
    layout = _LAST if last else torch.contiguous_format
    return torch.empty((x.shape[0], weight.shape[0], *sizes), dtype=x.dtype, device="meta", memory_format=layout)


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any) -> Any:
    sizes = {t.shape[0] for t in (weight, bias, mean, var) if t is not None}
    if sizes - {x.shape[1]} or (mean is None and not training):
        return None
    kept = x.shape[1] if training else 0
    return _empty(x, x.shape), _empty(x, (kept,)), _empty(x, (kept,))


def _matrix_product(x: Tensor, weight: Tensor) -> Any:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[0] or x.dtype != weight.dtype:
        return None
    return torch.empty((x.shape[0], weight.shape[1]), dtype=x.dtype, device="meta")


def _matrix_product_and_sum(bias: Tensor, x: Tensor, weight: Tensor) -> Any:
    out = _matrix_product(x, weight)
    if out is None or bias.dtype != x.dtype or bias.dim() > 2:
        return None
    fits = all(n in (1, size) for n, size in zip(reversed(bias.shape), reversed(out.shape), strict=False))
    return out if fits else None


def _layer_norm(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    first = x.dim() - len(shape)
    shapes = [t.shape for t in (weight, bias) if t is not None]
    if any(list(given) != list(x.shape[first:]) for given in (shape, *shapes)):
        return None
    if not x.is_contiguous() or any(t is not None and t.dtype != x.dtype for t in (weight, bias)):
        return None
    saved = (*x.shape[:first], *[1] * len(shape))
    return _empty(x, x.shape), _empty(x, saved), _empty(x, saved)


def _cat(tensors: Any, axis: int = 0) -> Any:
    first = tensors[0]
    axis %= first.dim()
    rest = (*first.shape[:axis], *first.shape[axis + 1 :])
    for tensor in tensors:
        if tensor.dtype != first.dtype or not tensor.is_contiguous() or tensor.dim() != first.dim():
            return None
        if (*tensor.shape[:axis], *tensor.shape[axis + 1 :]) != rest:
            return None
    length = sum(tensor.shape[axis] for tensor in tensors)
    return torch.empty((*rest[:axis], length, *rest[axis:]), dtype=first.dtype, device="meta")


def _mean(x: Tensor, axes: Any, keepdim: bool = False) -> Any:
    if not axes or not x.is_floating_point():
        return None
    gone = {axis % x.dim() for axis in axes}
    sizes = [1 if axis in gone else n for axis, n in enumerate(x.shape) if keepdim or axis not in gone]
    return torch.empty(sizes, dtype=x.dtype, device="meta") if x.is_contiguous() else None


_SPECIAL: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.mm.default: _matrix_product,
    aten.addmm.default: _matrix_product_and_sum,
    aten.cat.default: _cat,
    aten.mean.dim: _mean,
}


def _like_first(x: Any, *rest: Any) -> Any:
    return _empty(x, x.shape) if x.is_floating_point() else None


def _in_place(first: Any, second: Any = None, *rest: Any) -> Any:
    if isinstance(second, int | float) and isinstance(first, Tensor):
        return first
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if isinstance(second, Tensor) and (second.shape != first.shape or second.dtype != first.dtype):
        return None
    return first


def _of_two(first: Any, second: Any, *rest: Any) -> Any:
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if not isinstance(second, Tensor) or second.shape == first.shape:
        return _empty(first, first.shape) if not isinstance(second, Tensor) or second.dtype == first.dtype else None
    if second.dtype != first.dtype or 0 in (first.dim(), second.dim()):
        return None
    try:
        return _empty(first, torch.broadcast_shapes(first.shape, second.shape))
    except RuntimeError:
        return None


# An operation lives as long as torch does; its id is looked up faster than itself.
_KNOWN: dict[int, Callable[..., Any]] = {
    **{id(func): _like_first for func in _UNARY},
    **{id(func): _of_two for func in _BINARY},
    **{id(func): _in_place for func in _IN_PLACE},
    **{id(func): special for func, special in _SPECIAL.items()},
}


def result_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation on meta tensors gives, or None where the operation must be asked itself."""
    known = None if kwargs else _KNOWN.get(id(func))
    return None if known is None else known(*args)
