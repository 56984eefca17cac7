"""How to compute on the hardware at hand: precision and memory format."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.training.recipe import Precision


@dataclass(frozen=True)
class Compute:
    """A choice of number format and memory format for training on one device."""

    device: torch.device
    bfloat16: bool
    memory_format: torch.memory_format

    def autocast(self) -> AbstractContextManager[object]:
        """Open the context for a forward pass: float32 weights, convolutions in bfloat16 where that was chosen."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def lay_out(self, images: Tensor) -> Tensor:
        """Arrange a batch (N, C, H, W) in memory as the network's weights are."""
        return images.contiguous(memory_format=self.memory_format)


def choose_compute(model: nn.Module, precision: Precision, device: torch.device, images: Tensor) -> Compute:
    """Choose what is fastest for `model`; `images` (N, C, H, W), float32 on `device`, is a batch to try it on.

    Measured with torch 2.13 on two Zen 4 cores (avx512_bf16), ResNet-20, batches of 128, ms a training step, fastest of
    16: float32 273, float32 channels_last 213, bfloat16 147, bfloat16 channels_last 128. A CPU without instructions
    for bfloat16 emulates it, slowly. MobileNetV2 gains as well (32 images, one core, ms in that order: 2122, 1256,
    1452, 1032), but ShuffleNetV2 loses by bfloat16 (446, 380, 510, 503); "float32" is for such a network.
    """
    bfloat16 = precision == "bfloat16" or (precision == "auto" and _fast_bfloat16(device))
    channels_last = images.ndim == 4 and _runs_channels_last(model, images)
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


def _runs_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Tell whether the forward pass takes channels_last; one with `view` over channels and pixels does not."""
    training = model.training
    model.eval()  # neither statistics nor random states may move
    try:
        with torch.inference_mode():
            model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # an error that has other causes comes back, in full, in the first step of training
        return False
    finally:
        model.train(training)
    return True
