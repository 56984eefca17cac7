"""Random networks out of the pieces: a description that prints as code, and the network that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from tests.graph.pieces import PIECES
from torch import Tensor, nn

MOST = 24  # channels of a map
SIDE = 8  # of the input, and of the largest map


@dataclass(frozen=True)
class Step:
    """A piece by its name, with a width."""

    piece: str
    width: int


@dataclass(frozen=True)
class Residual:
    """Steps whose result is added to their input, which is projected and resized where that is needed."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Concat:
    """Branches from one input, resized to the first one's size and concatenated; one without steps is the input."""

    branches: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True)
class Drawn:
    """A network: its stem's width, its steps, and the seed of its weights."""

    stem: int
    steps: tuple[Step | Residual | Concat, ...]
    seed: int = 0

    def build(self) -> Network:
        """Return the network, the same one each time; torch's random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Network(self)

    def inputs(self) -> Tensor:
        """Return its example input."""
        return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(self.seed))


class Network(nn.Module):
    """A stem, the drawn steps, and a classifier."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, drawn.stem, 3, padding=1, bias=False), nn.BatchNorm2d(drawn.stem), nn.SiLU()
        )
        self.body = Chain(drawn.steps, drawn.stem, SIDE)
        self.head = nn.Linear(self.body.channels_out, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Chain(nn.Sequential):
    """Steps one after another, with 1 × 1 convolutions and resizing between them where a piece needs it."""

    def __init__(self, steps: tuple[Step | Residual | Concat, ...], channels: int, side: int) -> None:
        modules: list[nn.Module] = []
        for step in steps:
            if isinstance(step, Step):
                made, channels, side = _piece(step, channels, side)
                modules += made
            else:
                modules.append(
                    Sum(step, channels, side) if isinstance(step, Residual) else Beside(step, channels, side)
                )
                channels, side = modules[-1].channels_out, modules[-1].side  # type: ignore[assignment]
            if channels > MOST:
                modules.append(nn.Conv2d(channels, MOST // 2, 1))
                channels = MOST // 2
        super().__init__(*modules)
        self.channels_out, self.side = channels, side


class Sum(nn.Module):
    """A residual sum around a chain."""

    def __init__(self, drawn: Residual, channels: int, side: int) -> None:
        super().__init__()
        self.body = Chain(drawn.steps, channels, side)
        self.channels_out, self.side = self.body.channels_out, self.body.side
        same = channels == self.channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, self.channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y + self.shortcut(x if x.shape[2:] == y.shape[2:] else F.adaptive_avg_pool2d(x, y.shape[-2:]))


class Beside(nn.Module):
    """Chains beside one another."""

    def __init__(self, drawn: Concat, channels: int, side: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Chain(steps, channels, side) for steps in drawn.branches)
        self.channels_out = sum(branch.channels_out for branch in self.branches)
        self.side = self.branches[0].side

    def forward(self, x: Tensor) -> Tensor:
        outs = [branch(x) for branch in self.branches]
        size = outs[0].shape[-2:]
        return torch.cat([y if y.shape[-2:] == size else F.interpolate(y, size=size) for y in outs], 1)


def _piece(step: Step, channels: int, side: int) -> tuple[list[nn.Module], int, int]:
    """Return a piece with what it needs before it, and the channels and the size that come out."""
    piece = PIECES[step.piece]
    modules: list[nn.Module] = []
    if channels % piece.multiple or channels < 2 * piece.multiple:
        fitting = piece.multiple * max(2, channels // piece.multiple)
        modules.append(nn.Conv2d(channels, fitting, 1))
        channels = fitting
    if not 2 <= side * piece.scale <= SIDE:
        modules.append(nn.Upsample(scale_factor=2) if piece.scale < 1 else nn.AvgPool2d(2))
        side = int(side / piece.scale)
    block = piece.build(channels, step.width)
    return [*modules, block], block.channels_out, int(side * piece.scale)


def _steps() -> st.SearchStrategy[Step]:
    names = [name for name, piece in PIECES.items() if piece.drawn]
    return st.builds(Step, st.sampled_from(names), st.integers(2, 12))


def _chains(least: int) -> st.SearchStrategy[tuple[Step, ...]]:
    return st.lists(_steps(), min_size=least, max_size=2).map(tuple)


def networks() -> st.SearchStrategy[Drawn]:
    """Draw networks of one to six steps, some of them sums and concatenations of shorter chains."""
    step = _steps()
    joined = st.builds(Residual, _chains(1)) | st.builds(
        Concat, st.lists(_chains(0), min_size=2, max_size=3).map(tuple)
    )
    steps = st.lists(st.one_of(step, step, joined), min_size=1, max_size=6).map(tuple)
    return st.builds(Drawn, st.integers(4, 16), steps, st.integers(0, 2**16))
