"""Blocks that gate their channels or positions by what they see of all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, conv, conv_norm
from torch import Tensor, nn


class SqueezeExcite(Block):
    """Gates channels by their means; `how` says with which layers."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        super().__init__(inputs)
        self.how = how
        self.down, self.up = nn.Conv2d(inputs, width, 1), nn.Conv2d(width, inputs, 1)
        self.fc = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, inputs), nn.Sigmoid())
        self.one, self.both = nn.Conv2d(inputs, inputs, 1), nn.Conv2d(2 * inputs, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        if self.how == "convolutions":
            return x * F.hardsigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        if self.how == "linear":
            return x * self.fc(x.mean((2, 3))).view(n, c, 1, 1).expand_as(x)
        if self.how == "effective":
            return x * F.hardsigmoid(self.one(x.mean((2, 3), keepdim=True)))
        pooled = torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1)
        return x * torch.sigmoid(self.both(pooled))


class ECA(Block):
    """A convolution along the channels themselves: its neighbours are the kept ones."""

    def __init__(self, inputs: int, width: int, how: str = "view") -> None:
        super().__init__(inputs)
        self.how, self.conv = how, nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "view":  # timm's
            y = x.mean((2, 3)).view(x.shape[0], 1, -1)
            return x * self.conv(y).view(x.shape[0], -1, 1, 1).sigmoid().expand_as(x)
        y = F.adaptive_avg_pool2d(x, 1)  # the authors'
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class GlobalContext(Block):
    """A softmax over space weighs positions; a bottleneck of their sum is added."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.mask, self.down, self.up = conv(inputs, 1, 1), conv(inputs, width, 1), conv(width, inputs, 1)
        self.norm = nn.LayerNorm([width, 1, 1])

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        attention = F.softmax(self.mask(x).reshape(n, 1, h * w), dim=-1).unsqueeze(3)
        context = torch.matmul(x.reshape(n, c, h * w).unsqueeze(1), attention).view(n, c, 1, 1)
        return x + self.up(F.silu(self.norm(self.down(context))))


class CBAM(Block):
    """Channels by two pooled vectors through one shared network, positions by mean and maximum over channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.fc1, self.fc2 = nn.Conv2d(inputs, width, 1, bias=False), nn.Conv2d(width, inputs, 1, bias=False)
        self.spatial = conv(2, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        average = self.fc2(F.silu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        largest = self.fc2(F.silu(self.fc1(F.adaptive_max_pool2d(x, 1))))
        x = x * torch.sigmoid(average + largest)
        pooled = torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


class CoordinateAttention(Block):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.squeeze = conv_norm(inputs, width, 1)
        self.rows, self.columns = conv(width, inputs, 1), conv(width, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.size()
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], dim=2)
        rows, columns = torch.split(self.squeeze(y), [h, w], dim=2)
        return x * torch.sigmoid(self.rows(rows)) * torch.sigmoid(self.columns(columns.permute(0, 1, 3, 2)))


class Triplet(Block):
    """Each pair of axes is attended over the third: a convolution runs over (C, W), too."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.gates = nn.ModuleList(conv(2, 1, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        def gate(y: Tensor, convolution: nn.Module) -> Tensor:
            pooled = torch.cat((y.amax(1, keepdim=True), y.mean(1, keepdim=True)), 1)
            return y * torch.sigmoid(convolution(pooled))

        turned = gate(x.permute(0, 2, 1, 3).contiguous(), self.gates[0]).permute(0, 2, 1, 3).contiguous()
        return (turned + gate(x, self.gates[1])) / 2


def _simam(m: Written, x: Tensor) -> Tensor:
    d = (x - x.mean((2, 3), keepdim=True)).pow(2)
    n = x.shape[2] * x.shape[3] - 1
    return x * torch.sigmoid(d / (4 * (d.sum((2, 3), keepdim=True) / n + 1e-4)) + 0.5)


def _gate_by(reduce):
    """x times a map that a function of all channels makes."""
    return Piece(lambda c, w: Written(lambda m, x: x * torch.sigmoid(reduce(x)), c), notes="over the kept channels")


GATES: dict[str, Piece] = {
    "squeeze and excite, convolutions": Piece(lambda c, w: SqueezeExcite(c, w, "convolutions")),
    "squeeze and excite, linear": Piece(lambda c, w: SqueezeExcite(c, w, "linear")),
    "squeeze and excite, effective": Piece(lambda c, w: SqueezeExcite(c, w, "effective")),
    "squeeze and excite, mean beside maximum": Piece(lambda c, w: SqueezeExcite(c, w, "both")),
    "one-channel mask": Piece(lambda c, w: Written(lambda m, x: x * torch.sigmoid(m.conv(x)), c, conv=conv(c, 1))),
    "ECA by view": Piece(ECA, notes="neighbours are the kept channels"),
    "ECA by transpose": Piece(lambda c, w: ECA(c, w, "transpose"), notes="neighbours are the kept channels"),
    "global context": Piece(GlobalContext),
    "CBAM": Piece(CBAM, notes="mean and maximum over the kept channels"),
    "coordinate attention": Piece(CoordinateAttention),
    "triplet attention": Piece(Triplet, expected="frozen", prunes=False, notes="neighbours by position"),
    "SimAM": Piece(lambda c, w: Written(_simam, c)),
    "mean over channels": _gate_by(lambda x: x.mean(1, keepdim=True)),
    "maximum over channels": _gate_by(lambda x: x.amax(1, keepdim=True)),
    "norm over channels": _gate_by(lambda x: x.norm(dim=1, keepdim=True)),
    "sum over channels": _gate_by(lambda x: 0.1 * x.sum(1, keepdim=True)),
    "spread over channels": _gate_by(lambda x: x.var(1, unbiased=False, keepdim=True)),
    "logsumexp over channels": _gate_by(lambda x: x.logsumexp(1, keepdim=True)),
    "softmax over channels": _gate_by(lambda x: 4 * x.softmax(1)),
    "cumulated over channels": Piece(
        lambda c, w: Written(lambda m, x: m.conv(0.1 * x.cumsum(1)), w, conv=conv(c, w)),
        expected="frozen",
        prunes=False,
    ),
    "channels sorted": Piece(
        lambda c, w: Written(lambda m, x: m.conv(x.sort(dim=1)[0]), w, conv=conv(c, w)), expected="frozen", prunes=False
    ),
}
