"""The small network that operations are tested in, and what a test of one is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPES = {1: (2, 3, 16), 2: (2, 3, 8, 8), 3: (2, 3, 4, 4, 4)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Between(nn.Module):
    """conv(3 → 8) → BatchNorm → ReLU → the function under test → conv → mean → linear, in 1d, 2d or 3d."""

    def __init__(
        self,
        middle: Callable[[Any, Tensor], Tensor],
        width: int = 8,
        after: int | None = None,
        rank: int = 2,
        **parts: nn.Module,
    ) -> None:
        super().__init__()
        self.first = CONVOLUTIONS[rank](3, width, 3, padding=1)
        self.norm = NORMS[rank](width)
        for name, part in parts.items():
            self.add_module(name, part)
        self.last = CONVOLUTIONS[rank](after or width, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(self.last(self.middle(self, x)).flatten(2).mean(2))


@dataclass(frozen=True)
class Case:
    """A network, and what a trace should say: the size of each group, and the pieces of those that have several.

    `pieces` gives the piece of each channel of a group, a digit each. `mixing` are the operations that take statistics
    over channels. `draws` is True where training mode draws random numbers. What is kept whole has a `reason`, and an
    operation that asked for it.
    """

    build: Callable[[], nn.Module]
    sizes: Mapping[str, int]
    pieces: Mapping[str, str] = field(default_factory=dict)
    mixing: tuple[str, ...] = ()
    rank: int = 2
    draws: bool = False
    reason: str = ""
    op: str = ""

    def inputs(self) -> Tensor:
        """Return an example input, the same one each time."""
        return torch.randn(SHAPES[self.rank], generator=torch.Generator().manual_seed(0))


def case(
    middle: Callable[[Any, Tensor], Tensor],
    make: Callable[[], dict[str, nn.Module]] = dict,
    *,
    sizes: Mapping[str, int] | None = None,
    pieces: str | Mapping[str, str] = "",
    mixing: str = "",
    rank: int = 2,
    after: int | None = None,
    draws: bool = False,
) -> Case:
    """A function of the network and its 8 channels, which are pruned along with the 6 of the last convolution.

    `make` makes the parts that the function uses, and `sizes` are those of the groups that they add.
    """
    return Case(
        lambda: Between(middle, after=after, rank=rank, **make()),
        {"first": 8, **(sizes or {}), "last": 6},
        {"first": pieces} if isinstance(pieces, str) and pieces else pieces or {},  # type: ignore[arg-type]
        (f"aten.{mixing}",) if mixing else (),
        rank,
        draws,
    )


def kept(
    middle: Callable[[Any, Tensor], Tensor],
    make: Callable[[], dict[str, nn.Module]] = dict,
    *,
    reason: str,
    op: str = "",
    sizes: Mapping[str, int] | None = None,
    after: int | None = None,
) -> Case:
    """A function whose 8 channels stay, for a reason; `sizes` are those of the groups that are left beside the last."""
    return Case(
        lambda: Between(middle, after=after, **make()),
        {**(sizes or {}), "last": 6},
        reason=reason,
        op=f"aten.{op}" if op else "",
    )


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Held(nn.Module):
    """Holds a tensor that is not trained."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("tensor", tensor)


class Stores(nn.Module):
    """Does something with numbers that it stores."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **numbers: Any) -> None:
        super().__init__()
        self.function = function
        for name, number in numbers.items():
            setattr(self, name, number)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
