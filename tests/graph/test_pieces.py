"""Every piece between a stem and a head, and every network: it runs, and pruned by half it equals its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.graph.pieces import NETWORKS, PIECES, Network, Piece
from tests.silenced import randomise
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import prunus

WIDTH = 6  # that every piece is built with
CHANNELS = {name: piece.multiple * max(4, -(-8 // piece.multiple)) for name, piece in PIECES.items()}
SIZES = ((8, 8), (4, 4), (8, 4))
OWN_WEIGHTS = ("einsum with a weight", "matmul with a weight", "functional convolutions")


def one_width(piece: Piece) -> bool:
    """Whether a block's tensors run along the channels that come in, and along no other width."""
    weighted = (nn.modules.conv._ConvNd, nn.Linear)
    return piece.prunes and not any(isinstance(m, weighted) for m in piece.build(8 * piece.multiple, WIDTH).modules())


ONE_WIDTH = [name for name, piece in PIECES.items() if one_width(piece) and name not in OWN_WEIGHTS]


class Between(nn.Module):
    """Stem, BatchNorm, SiLU, the piece, convolution, mean, linear."""

    def __init__(self, piece: Piece, channels: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.piece = piece.build(channels, WIDTH)
        self.last, self.head = nn.Conv2d(self.piece.channels_out, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        return self.head(self.last(self.piece(x)).mean((2, 3)))


def between(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Between(PIECES[name], CHANNELS[name]))


def whole(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(NETWORKS[name].build())


def inputs_of(network: Network) -> tuple[Any, ...]:
    torch.manual_seed(1)
    return network.inputs()


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def stem_of(model: nn.Module) -> nn.Module:
    stem = model.stem
    return stem[0] if isinstance(stem, nn.Sequential) else stem


def runs(model: nn.Module, args: tuple[Any, ...]) -> dict[str, list[tuple[int, ...]]]:
    """Run forward and backward in both modes; the shapes of the outputs, which must be finite."""
    shapes = {}
    for mode in ("eval", "train"):
        model.train(mode == "train").zero_grad()
        outs = tensors(model(*args))
        assert outs
        assert all(torch.isfinite(out).all() for out in outs), mode
        shapes[mode] = [tuple(out.shape) for out in outs]
        weights = [torch.linspace(-1, 1, out.numel()).reshape(out.shape) for out in outs]
        sum((o * w).sum() for o, w in zip(outs, weights, strict=True) if o.requires_grad).backward()
        stem = stem_of(model).weight
        if stem.requires_grad:
            assert stem.grad is not None and torch.isfinite(stem.grad).all() and stem.grad.abs().max() > 0, mode
    return shapes


def state_of(model: nn.Module) -> tuple[object, ...]:
    """Everything about a model that pruning must leave alone."""
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    plain = (int, float, bool, str, tuple, list, dict)
    modules = {
        name: {key: repr(value) for key, value in vars(module).items() if isinstance(value, plain) and key[0] != "_"}
        | {"hooks": (len(module._forward_hooks), len(module._forward_pre_hooks))}
        for name, module in model.named_modules()
    }
    return values, modules, [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]


def check(build: Callable[[], nn.Module], args: tuple[Any, ...], spec: Piece | Network) -> None:
    """Prune half of every width; the proof, the shapes, the stem, and the user's model."""
    model = build().train()
    next(iter(model.children())).eval()  # modes that differ
    values, modules, gradients = state_of(model)
    seed, before = torch.get_rng_state(), [arg.clone() for arg in tensors(args)]
    result = prunus.prune(model, args, pruning_ratio=0.5, criterion="l1_norm", scope="local", min_channels=1)
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(arg, other) for arg, other in zip(tensors(args), before, strict=True))
    after = state_of(model)
    assert after[1:] == (modules, gradients)
    assert after[0].keys() == values.keys()
    assert all(torch.equal(after[0][name], value) for name, value in values.items())
    assert result.verification.passed, result.verification
    assert result.verification.max_relative_error <= 1e-10
    assert all(freeze.reason for freeze in result.graph.frozen)
    if spec.expected == "exact":
        assert [f for f in result.graph.frozen if "output of the model" not in f.reason] == []
    if spec.prunes:
        assert len(stem_of(result.model).weight) < len(stem_of(model).weight), result.graph.frozen
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert runs(result.model, args) == runs(build(), args)


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_runs(name: str) -> None:
    """In plain PyTorch, at every size, in both modes; gradients reach the stem."""
    piece = PIECES[name]
    for channels, width in ((CHANNELS[name], WIDTH), (2 * piece.multiple, 2), (6 * piece.multiple, 7)):
        torch.manual_seed(0)
        block = piece.build(channels, width)
        for h, w in SIZES:
            shape = block(torch.randn(2, channels, h, w)).shape
            assert shape == (2, block.channels_out, h * piece.scale, w * piece.scale)
    runs(between(name), (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_runs(name: str) -> None:
    runs(whole(name), inputs_of(NETWORKS[name]))


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_is_pruned(name: str) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    check(lambda: between(name), (x,), PIECES[name])


@pytest.mark.parametrize("name", ONE_WIDTH)
def test_a_pruned_piece_is_the_narrower_one(name: str) -> None:
    """A block of one width, pruned, is what its builder makes for so many channels, with the kept ones' values."""
    piece, wide = PIECES[name], between(name).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pruned = prunus.prune(wide, x, pruning_ratio=0.5, criterion="l1_norm", scope="local", min_channels=1).model
    rows = wide.stem.weight.flatten(1).tolist()
    kept = torch.tensor([rows.index(row) for row in pruned.stem.weight.flatten(1).tolist()])
    assert len(kept) < CHANNELS[name]
    narrow = piece.build(len(kept), WIDTH).eval()
    state = wide.piece.state_dict()
    for key, tensor in state.items():
        for axis in [axis for axis, size in enumerate(tensor.shape) if size == CHANNELS[name]]:
            state[key] = state[key].index_select(axis, kept)
    narrow.load_state_dict(state)
    inputs = torch.randn(2, len(kept), 8, 8)
    assert torch.allclose(pruned.piece(inputs), narrow(inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_pruned(name: str) -> None:
    check(lambda: whole(name), inputs_of(NETWORKS[name]), NETWORKS[name])
