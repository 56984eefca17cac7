"""What is said of a result without asking the meta device is what the device, or the CPU, says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.graph.shapes import result_of

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


NORMS = [meta(4) for _ in range(4)]
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "mm": (aten.mm.default, (meta(3, 4), meta(4, 5))),
    "mm that does not fit": (aten.mm.default, (meta(3, 4), meta(3, 5))),
    "mm of two types": (aten.mm.default, (meta(3, 4), meta(4, 5, dtype=torch.float64))),
    "addmm": (aten.addmm.default, (meta(5), meta(3, 4), meta(4, 5))),
    "addmm, wide bias": (aten.addmm.default, (meta(1, 5), meta(3, 4), meta(4, 5))),
    "addmm, bias that does not fit": (aten.addmm.default, (meta(4), meta(3, 4), meta(4, 5))),
    "layer norm": (aten.native_layer_norm.default, (meta(2, 3, 4), [4], meta(4), meta(4), 1e-5)),
    "layer norm, two axes": (aten.native_layer_norm.default, (meta(2, 3, 4), [3, 4], None, None, 1e-5)),
    "layer norm that does not fit": (aten.native_layer_norm.default, (meta(2, 3, 4), [5], None, None, 1e-5)),
    "layer norm, turned": (aten.native_layer_norm.default, (meta(2, 4, 3).mT, [4], meta(4), None, 1e-5)),
    "cat": (aten.cat.default, ([meta(2, 3, 4), meta(2, 5, 4)], 1)),
    "cat from the end": (aten.cat.default, ([meta(2, 3, 4), meta(2, 5, 4)], -2)),
    "cat without an axis": (aten.cat.default, ([meta(2, 3), meta(1, 3)],)),
    "cat that does not fit": (aten.cat.default, ([meta(2, 3), meta(3, 4)], 0)),
    "cat, channels last": (aten.cat.default, ([last(meta(2, 3, 4, 4)), last(meta(2, 3, 4, 4))], 1)),
    "mean": (aten.mean.dim, (meta(2, 3, 4, 5), [2, 3])),
    "mean, kept": (aten.mean.dim, (meta(2, 3, 4, 5), [-1], True)),
    "mean, channels last": (aten.mean.dim, (last(meta(2, 3, 4, 5)), [2, 3], True)),
    "batch norm, training": (aten.native_batch_norm.default, (meta(2, 4, 3), *NORMS, True, 0.1, 1e-5)),
    "add": (aten.add.Tensor, (meta(2, 3, 4), meta(3, 1))),
    "add a number": (aten.add.Tensor, (meta(2, 3, 4), 1.5)),
    "add that does not fit": (aten.add.Tensor, (meta(2, 3), meta(2, 4))),
    "relu": (aten.relu.default, (last(meta(2, 3, 4, 4)),)),
}


@pytest.mark.parametrize("name", CASES)
def test_as_the_meta_device_says(name: str) -> None:
    func, args = CASES[name]
    said = result_of(func, args, {})
    try:
        asked = func(*args)
    except RuntimeError:
        assert said is None, "the operation itself must refuse"
        return
    if said is None:
        return
    for found, wanted in zip(*(out if isinstance(out, tuple) else (out,) for out in (said, asked)), strict=True):
        assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


def test_most_are_not_asked() -> None:
    asked = {name for name, (func, args) in CASES.items() if result_of(func, args, {}) is None}
    assert asked <= {name for name in CASES if "not fit" in name or "two types" in name} | {
        "layer norm, turned",
        "cat, channels last",
        "mean, channels last",
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "a slice of channels last", "weight channels last"])
def test_convolutions_are_laid_out_as_on_the_cpu(layout: str) -> None:
    """Products fold their axes, or not, by the layout of what they get; a trace must see what the proof will."""
    x, weight = torch.randn(2, 10, 8, 8), torch.randn(6, 5, 3, 3)
    x = last(x) if "channels last" in layout and "weight" not in layout else x
    x = x[:, 5:] if "slice" in layout else x[:, :5].contiguous() if layout == "contiguous" else x
    weight = last(weight) if "weight" in layout else weight
    if x.shape[1] == 10:
        weight = torch.cat([weight, weight], 1)
        weight = last(weight) if "weight" in layout else weight
    rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    real = aten.convolution.default(x, weight, *rest)
    on_meta = [torch.empty_strided(t.shape, t.stride(), device="meta") for t in (x, weight)]
    said = result_of(aten.convolution.default, (*on_meta, *rest), {})
    assert (said.shape, said.stride()) == (real.shape, real.stride())
