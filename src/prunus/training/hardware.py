"""How to compute on the hardware at hand: precision and memory format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.training.recipe import Precision

_UNSAFE_BELOW = 16  # input channels: what oneDNN takes at a time with AVX-512; 8 with AVX2


@dataclass(frozen=True)
class Compute:
    """A choice of number format and memory format for training on one device."""

    device: torch.device
    bfloat16: bool
    memory_format: torch.memory_format

    def autocast(self) -> AbstractContextManager[object]:
        """Open the context for a forward pass: float32 weights, convolutions in bfloat16 where that was chosen."""
        if self.bfloat16 and self.device.type == "cpu":
            return _bfloat16_on_cpu()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def lay_out(self, images: Tensor) -> Tensor:
        """Arrange a batch (N, C, H, W) in memory as the network's weights are."""
        return images.contiguous(memory_format=self.memory_format)


def choose_compute(model: nn.Module, precision: Precision, device: torch.device, images: Tensor) -> Compute:
    """Choose what is fastest for `model`; `images` (N, C, H, W), float32 on `device`, is a batch to try it on.

    Measured with torch 2.13 on two Zen 4 cores (avx512_bf16), ResNet-20, batches of 128, ms a training step, fastest of
    16: float32 273, float32 channels_last 213, bfloat16 147, bfloat16 channels_last 128. A CPU without instructions
    for bfloat16 emulates it, slowly. Lightweight networks gain as well, since their depthwise convolutions with a
    stride stay in float32: benchmarks/depthwise.py.
    """
    bfloat16 = precision == "bfloat16" or (precision == "auto" and _fast_bfloat16(device))
    channels_last = images.ndim == 4 and _runs_channels_last(model, images, safe=device.type != "cpu" or bfloat16)
    return Compute(device, bfloat16, torch.channels_last if channels_last else torch.contiguous_format)


def lay_out_model(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Rearrange the 4-D parameters and buffers of `model` in place."""
    model.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stub has no such overload


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # A torch that cannot tell trains in float32.
        capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


@contextmanager
def _bfloat16_on_cpu() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16), _DepthwiseInFloat32():
        yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Keeps in float32 what oneDNN has no quick gradient for in bfloat16: depthwise convolutions but the plainest.

    Their results are bfloat16 as all others', so that what reads them is as quick as it was.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, a convolution of that kind with autocast switched off."""
        kwargs = kwargs or {}
        if func is not torch.conv2d or not _is_slow(*args, **kwargs):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(
                *map(_in_float32, args), **{name: _in_float32(value) for name, value in kwargs.items()}
            ).bfloat16()


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _is_slow(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Tell of the arguments of `torch.conv2d` whether it is depthwise, and other than 3×3 with stride 1, undilated."""
    if groups == 1 or weight.shape[1] != 1 or weight.dtype != torch.float32:
        return False
    return weight.shape[2:] != (3, 3) or any(step != 1 for step in (*_pair(stride), *_pair(dilation)))


def _pair(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _runs_channels_last(model: nn.Module, images: Tensor, safe: bool) -> bool:
    """Tell whether the network takes channels_last, forwards and, unless that is `safe` anyway, backwards.

    A `view` over channels and pixels does not. In float32 on a CPU, oneDNN writes past its memory in the backward pass
    of a strided 1×1 convolution whose inputs lie so and are few (https://github.com/uxlfoundation/oneDNN/issues/6035):
    wrong gradients, or the end of the process. Pruned shortcuts are such layers.
    """
    training = model.training
    model.eval()  # neither statistics nor random states may move
    watch = _Convolutions()  # type: ignore[no-untyped-call]  # torch does not annotate it
    try:
        with torch.no_grad(), watch:  # inference_mode would hide what an operation consists of
            model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # an error that has other causes comes back, in full, in the first step of training
        return False
    finally:
        model.train(training)
    return safe or not watch.unsafe


class _Convolutions(TorchDispatchMode):
    """Watches a forward pass for convolutions that channels_last is not safe for."""

    unsafe = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            weight, stride, groups = args[1], args[3], args[8]
            pointwise = set(weight.shape[2:]) == {1} and max(stride) > 1
            self.unsafe |= pointwise and weight.shape[1] < _UNSAFE_BELOW and groups == 1
        return func(*args, **(kwargs or {}))
