"""Whole networks that are too large to write in a line."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import conv, conv_norm
from torch import Tensor, nn


class Pyramid(nn.Module):
    """A feature pyramid whose levels share one head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv_norm(3, 8), nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.SiLU())
        self.lateral = nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)])
        self.smooth = nn.ModuleList([conv(6, 6), conv(6, 6)])
        self.head = nn.Sequential(conv_norm(6, 6), conv(6, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.stem(x)]
        levels.append(self.down(levels[0]))
        tops = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        tops[0] = tops[0] + F.interpolate(tops[1], size=tops[0].shape[-2:], mode="nearest")
        return [self.head(smooth(top)) for smooth, top in zip(self.smooth, tops, strict=True)]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = conv_norm(3, 8), conv_norm(8, 16)
        self.up, self.join, self.out = nn.ConvTranspose2d(16, 8, 2, 2), conv_norm(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.up(self.middle(F.max_pool2d(a, 2)))
        return self.out(self.join(torch.cat([a, b], 1)))


class Detector(nn.Module):
    """A YOLO head: (N, anchors, H, W, numbers), numbers decoded by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neck = conv_norm(3, 8), conv_norm(8, 8)
        self.na, self.no = 2, 7
        self.head = nn.Conv2d(8, self.na * self.no, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.neck(self.stem(x)))
        n, _, h, w = y.shape
        y = y.view(n, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous()
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((columns, rows), 2).view(1, 1, h, w, 2).to(y)
        place, size, rest = y.sigmoid().split((2, 2, self.no - 4), 4)
        return torch.cat(((place * 2 + grid) * 8, (size * 2) ** 2, rest), 4).view(n, -1, self.no)


class Generator(nn.Module):
    """From a vector to an image: linear, view, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Linear(10, 16 * 4), 2
        self.layers = nn.Sequential(
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.ConvTranspose2d(16, 8, 4, 2, 1),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.layers(self.stem(z).view(len(z), -1, self.side, self.side)))


class Queries(nn.Module):
    """A hybrid: convolutions, a transformer layer over positions with learned queries, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = conv_norm(3, 8), nn.Conv2d(8, 8, 1)
        self.queries = nn.Parameter(torch.randn(4, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.classes, self.boxes = nn.Linear(8, 5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        memory = self.encoder(self.project(self.stem(x)).flatten(2).permute(0, 2, 1))
        y = self.decoder(self.queries.unsqueeze(0).repeat(len(x), 1, 1), memory)
        return {"logits": self.classes(y), "boxes": self.boxes(y).sigmoid()}


class Patches(nn.Module):
    """ConvMixer-like with a stem of patches and a mixer of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.tokens, self.channels = nn.Linear(16, 16), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm(x))).mean(1))


class Words(nn.Module):
    """A text CNN: an embedding of whole numbers, convolutions over time, a maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.stem, self.other = nn.Conv1d(12, 8, 3, padding=1), nn.Conv1d(12, 6, 5, padding=2)
        self.head = nn.Linear(14, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(1, 2)
        return self.head(torch.cat([F.silu(c(x)).amax(2) for c in (self.stem, self.other)], 1))


class Unused(nn.Module):
    """Parts that forward never calls, one that runs without gradients, and one that two parents hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.idle = conv_norm(3, 8), conv(8, 8)
        self.shared = conv(8, 8)
        self.parents = nn.ModuleList([nn.Sequential(self.shared, nn.SiLU()), nn.Sequential(nn.Tanh(), self.shared)])
        self.teacher = conv(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for parent in self.parents:
            x = parent(x)
        with torch.no_grad():
            wanted = self.teacher(x.detach())
        return self.head((x + wanted).mean((2, 3)))


class Wrapped(nn.Module):
    """A trunk in nn.DataParallel, which without a GPU passes calls through."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.DataParallel(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.SiLU()))
        self.head = nn.Linear(8, 4)

    @property
    def stem(self) -> nn.Module:
        return self.trunk.module[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).mean((2, 3)))
