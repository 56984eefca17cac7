"""What a piece is: a builder of small blocks, and what pruning it should be like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn


class Block(nn.Module):
    """Maps (N, C, H, W) to (N, channels_out, H', W')."""

    def __init__(self, channels_out: int) -> None:
        super().__init__()
        self.channels_out = channels_out


class Written(Block):
    """A block whose forward is a function of the block and its input; `parts` are its modules, tensors and numbers."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], channels_out: int, **parts: Any) -> None:
        super().__init__(channels_out)
        self.written = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


@dataclass(frozen=True)
class Piece:
    """A way to write a block, and what an ideal tool makes of it.

    `build` takes the channels that come in, a multiple of `multiple`, and a width for the block to use. The block works
    at every even size from 2 × 2 on (from 4 × 4 on where `scale` halves it), and multiplies it by `scale`.
    `expected` is "frozen" where a part may be kept whole with a reason; the network is exact then too. `prunes` says
    whether the width that comes in can be pruned. Random networks are drawn from the pieces that are `drawn`.
    """

    build: Callable[[int, int], nn.Module]
    multiple: int = 1
    scale: float = 1.0
    expected: Literal["exact", "frozen"] = "exact"
    prunes: bool = True
    drawn: bool = True
    notes: str = ""


@dataclass(frozen=True)
class Network:
    """A whole network with a convolution `stem`, and the arguments that it takes."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    expected: Literal["exact", "frozen"] = "exact"
    prunes: bool = True
    notes: str = ""


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def conv_norm(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, BatchNorm, SiLU: a network that is half dead would hide half of the mistakes."""
    return nn.Sequential(
        conv(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )


def even(width: int) -> int:
    """The next even number."""
    return width + width % 2


def alone(layer: nn.Module, channels_out: int) -> Written:
    """A block that is one layer."""
    return Written(lambda m, x: m.layer(x), channels_out, layer=layer)
