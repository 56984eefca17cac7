"""Whole networks: several inputs and outputs, one and three dimensions, heads that come and go. Each has a `stem`."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tests.graph.pieces.architectures import (
    Detector,
    Generator,
    Patches,
    Pyramid,
    Queries,
    UNet,
    Unused,
    Words,
    Wrapped,
)
from tests.graph.pieces.piece import Network, conv, conv_norm
from torch import Tensor, nn

Result = namedtuple("Result", ["logits", "features"])


class Net(nn.Module):
    """A stem of 8 channels, `parts`, and a forward that is a function of the network and its arguments."""

    def __init__(self, forward: Callable[..., Any], stem: nn.Module | None = None, **parts: Any) -> None:
        super().__init__()
        self.stem = stem or conv(3, 8)
        self.norm = nn.BatchNorm2d(8)
        self.written = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def first(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.stem(x)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.written(self, *args, **kwargs)


def _image() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 8, 8),)


def _pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _auxiliary(m: Net, x: Tensor) -> Any:
    x = m.first(x)
    out = m.head(_pooled(m.body(x)))
    return (out, m.aux(_pooled(x))) if m.training else out


def _recurrent(m: Net, x: Tensor) -> Tensor:
    x = m.first(x)
    state = torch.zeros_like(x)
    for _ in range(3):
        state = torch.tanh(m.body(torch.cat([x, state], 1)))
    return m.head(_pooled(state))


def _masked(m: Net, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
    x = m.first(x) * scale
    return m.head(_pooled(x if mask is None else x * mask[:, None]))


def _dequantised(m: Net, x: Tensor) -> Tensor:
    x = (x.float() / 255 - m.mean) / m.std
    return m.head(_pooled(m.first(x.repeat(1, 3, 1, 1))))


def _frozen_stem() -> nn.Module:
    net = Net(lambda m, x: m.head(_pooled(m.body(m.first(x)))), body=conv_norm(8, 8), head=nn.Linear(8, 4))
    for parameter in [*net.stem.parameters(), *net.norm.parameters()]:
        parameter.requires_grad_(False)
    return net


def _with_buffers() -> nn.Module:
    net = Net(_dequantised, head=nn.Linear(8, 4))
    net.register_buffer("mean", torch.tensor([0.4]).view(1, 1, 1, 1), persistent=False)
    net.register_buffer("std", torch.tensor([0.3]).view(1, 1, 1, 1))
    return net


def _head(inputs: int = 8) -> nn.Linear:
    return nn.Linear(inputs, 4)


NETWORKS: dict[str, Network] = {
    "two inputs, one trunk": Network(
        lambda: Net(lambda m, a, b: m.head(_pooled(m.first(a) - m.first(b))), head=_head()),
        lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)),
    ),
    "two inputs, two stems": Network(
        lambda: Net(
            lambda m, a, b: m.head(torch.cat([_pooled(m.first(a)), F.silu(m.side(b))], 1)),
            side=nn.Linear(5, 6),
            head=_head(14),
        ),
        lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 5)),
    ),
    "inputs in a list": Network(
        lambda: Net(lambda m, xs: m.head(sum(_pooled(m.first(x)) for x in xs)), head=_head()),
        lambda: ([torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)],),
    ),
    "a mask that may be missing": Network(lambda: Net(_masked, head=_head()), _image),
    "a mask that is given": Network(lambda: Net(_masked, head=_head()), lambda: (*_image(), torch.rand(2, 8, 8), 3.0)),
    "outputs in a tuple": Network(
        lambda: Net(lambda m, x: (m.a(_pooled(y := m.first(x))), m.b(y)), a=_head(), b=conv(8, 2)), _image
    ),
    "outputs in a dict": Network(
        lambda: Net(lambda m, x: {"a": m.a(_pooled(y := m.first(x))), "b": [m.b(y), None]}, a=_head(), b=conv(8, 2)),
        _image,
    ),
    "outputs in a named tuple": Network(
        lambda: Net(lambda m, x: Result(m.a(_pooled(y := m.first(x))), m.b(y)), a=_head(), b=conv(8, 2)), _image
    ),
    "features as an output": Network(
        lambda: Net(lambda m, x: (m.a(_pooled(m.body(y := m.first(x)))), y), a=_head(), body=conv_norm(8, 8)),
        _image,
        expected="frozen",
        prunes=False,
    ),
    "auxiliary head in training": Network(
        lambda: Net(_auxiliary, body=conv_norm(8, 8), head=_head(), aux=_head()), _image
    ),
    "one dimension": Network(
        lambda: Net(
            lambda m, x: m.head(m.body(m.stem(x)).mean(2)),
            stem=nn.Conv1d(3, 8, 3),
            body=nn.Sequential(
                nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 8, 3, groups=2), nn.MaxPool1d(2), nn.Conv1d(8, 6, 1)
            ),
            head=_head(6),
        ),
        lambda: (torch.randn(2, 3, 16),),
    ),
    "three dimensions": Network(
        lambda: Net(
            lambda m, x: m.head(m.body(m.stem(x)).mean((2, 3, 4))),
            stem=nn.Conv3d(3, 8, 3, padding=1),
            body=nn.Sequential(
                nn.BatchNorm3d(8), nn.SiLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(8, 6, 2, 2), nn.Dropout3d(0.1)
            ),
            head=_head(6),
        ),
        lambda: (torch.randn(2, 3, 4, 4, 4),),
    ),
    "space, then time": Network(
        lambda: Net(
            lambda m, x: m.head(
                m.time(m.stem(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2]).transpose(1, 2)).mean(2)
            ),
            time=nn.Conv1d(8, 6, 3, padding=1),
            head=_head(6),
        ),
        lambda: (torch.randn(2, 3, 3, 8, 8),),
        notes="frames ride in the batch axis",
    ),
    "feature pyramid": Network(Pyramid, _image),
    "U-Net": Network(UNet, _image),
    "sub-pixel image (ESPCN)": Network(
        lambda: Net(lambda m, x: m.up(m.out(m.first(x))), out=conv(8, 12), up=nn.PixelShuffle(2)), _image
    ),
    "residual image": Network(
        lambda: Net(lambda m, x: x + m.out(m.first(x)), out=conv(8, 3)), _image, expected="frozen"
    ),
    "segmentation": Network(
        lambda: Net(
            lambda m, x: F.interpolate(
                m.out(F.avg_pool2d(m.first(x), 2)), size=x.shape[-2:], mode="bilinear", align_corners=False
            ),
            out=conv(8, 4),
        ),
        _image,
    ),
    "arg max as an output": Network(
        lambda: Net(lambda m, x: (y := m.out(m.first(x)), y.argmax(1)), out=conv(8, 4)), _image, expected="frozen"
    ),
    "detector": Network(
        Detector, _image, expected="frozen", notes="the head's numbers are cut before they are outputs"
    ),
    "generator": Network(Generator, lambda: (torch.randn(2, 10),)),
    "transformer with queries": Network(Queries, _image, expected="frozen", notes="the transformer's width may stay"),
    "patches and mixer": Network(Patches, _image, expected="frozen", notes="the mixer of positions has no channels"),
    "words": Network(Words, lambda: (torch.randint(0, 20, (2, 9)),)),
    "unused, shared, without gradients": Network(Unused, _image),
    "recurrent by hand": Network(lambda: Net(_recurrent, body=conv(16, 8), head=_head()), _image),
    "parameters without gradients": Network(_frozen_stem, _image),
    "whole numbers in, a buffer not saved": Network(
        _with_buffers, lambda: (torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8),)
    ),
    "a batch of one": Network(
        lambda: Net(lambda m, x: m.head(_pooled(m.first(x)).squeeze(0)), head=_head()),
        lambda: (torch.randn(1, 3, 8, 8),),
        notes="the batch axis goes if it is one; the example keeps it one",
    ),
    "dimensions without a batch": Network(
        lambda: Net(lambda m, x: m.head(_pooled(m.first(x.unsqueeze(0)))), head=_head()),
        lambda: (torch.randn(3, 8, 8),),
        notes="the first axis of the example is no batch",
    ),
    "class scores pool features": Network(
        lambda: Net(
            lambda m, x: torch.einsum("nkhw,nchw->nkc", m.out(y := m.first(x)).softmax(1), y) @ m.query,
            out=conv(8, 4),
            query=nn.Parameter(torch.randn(8, 5)),
        ),
        _image,
        expected="frozen",
        notes="the classes are an output after a softmax; the features that they pool are not",
    ),
    "DataParallel": Network(Wrapped, _image),
}
