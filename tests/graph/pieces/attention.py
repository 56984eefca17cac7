"""Blocks in which channels, positions or heads attend, and blocks that look at all channels at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.graph.pieces.piece import Block, Piece, Written, conv, conv_norm, even
from torch import Tensor, nn


class NonLocal(Block):
    """Positions attend to positions; the query, key and value are 1 × 1 convolutions."""

    def __init__(self, inputs: int, width: int, *, softmax: bool) -> None:
        super().__init__(inputs)
        self.inter_channels, self.softmax = width, softmax
        self.theta, self.phi, self.g = (conv(inputs, width, 1) for _ in range(3))
        self.out = nn.Sequential(conv(width, inputs, 1), nn.BatchNorm2d(inputs))

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        g = self.g(x).view(n, self.inter_channels, -1).permute(0, 2, 1)
        theta = self.theta(x).view(n, self.inter_channels, -1).permute(0, 2, 1)
        phi = self.phi(x).view(n, self.inter_channels, -1)
        scores = torch.matmul(theta, phi)
        weights = F.softmax(scores, dim=-1) if self.softmax else scores / scores.size(-1)
        y = torch.matmul(weights, g).permute(0, 2, 1).contiguous()
        return x + self.out(y.view(n, self.inter_channels, *x.size()[2:]))


class DoubleAttention(Block):
    """A²-Net's: features gathered by softmax over space, and given out by softmax over what was gathered."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.m, self.n = width, 4
        self.a, self.b, self.v = conv(inputs, self.m, 1), conv(inputs, self.n, 1), conv(inputs, self.n, 1)
        self.out = conv(self.m, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        a = self.a(x).view(n, self.m, h * w)
        maps = F.softmax(self.b(x).view(n, self.n, h * w), dim=-1)
        vectors = F.softmax(self.v(x).view(n, self.n, h * w), dim=1)
        gathered = torch.bmm(a, maps.transpose(1, 2))
        return x + self.out(gathered.matmul(vectors).view(n, self.m, h, w))


class TokenAttention(Block):
    """Self-attention of a vision transformer over positions: one linear layer makes query, key and value."""

    def __init__(self, inputs: int, width: int, *, fused: bool) -> None:
        super().__init__(inputs)
        self.num_heads, self.head_dim, self.fused = 2, inputs // 2, fused
        self.scale = self.head_dim**-0.5
        self.norm = nn.LayerNorm(inputs)
        self.qkv, self.proj = nn.Linear(inputs, 3 * inputs, bias=False), nn.Linear(inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        b, n, _ = tokens.shape
        qkv = self.qkv(self.norm(tokens)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        tokens = tokens + self.proj(y.transpose(1, 2).reshape(b, n, -1))
        return tokens.transpose(1, 2).reshape_as(x)


class ShapedAttention(Block):
    """The same with every size taken from x: (B, N, 3, h, C // h)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.num_heads, self.scale = 2, (inputs // 2) ** -0.5
        self.qkv, self.proj = nn.Linear(inputs, 3 * inputs), nn.Linear(inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        b, n, c = tokens.shape
        qkv = self.qkv(tokens).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        tokens = self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))
        return x + tokens.transpose(1, 2).reshape_as(x)


class ConvAttention(Block):
    """Query, key and value of one 1 × 1 convolution, cut by chunk; channels first."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.heads, self.scale = 2, max(2, width // 2) ** -0.5
        inner = 2 * max(2, width // 2)
        self.to_qkv, self.to_out = nn.Conv2d(inputs, 3 * inner, 1, bias=False), nn.Conv2d(inner, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = (t.reshape(n, self.heads, -1, h * w) for t in self.to_qkv(x).chunk(3, dim=1))
        attention = torch.einsum("bhdi,bhdj->bhij", q * self.scale, k).softmax(dim=-1)
        y = torch.einsum("bhij,bhdj->bhid", attention, v)
        return x + self.to_out(y.transpose(2, 3).reshape(n, -1, h, w))


class UnequalAttention(Block):
    """Keys narrower than values, cut by stored sizes (LeViT, YOLOv10's PSA)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.num_heads, self.key_dim, self.head_dim = 2, max(2, width // 4), max(2, width // 2)
        self.scale = self.key_dim**-0.5
        self.qkv = conv_norm(inputs, 2 * (2 * self.key_dim + self.head_dim), 1)
        inner = 2 * self.head_dim
        self.proj, self.pe = conv_norm(inner, inputs, 1), conv(inner, inner, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attention = ((q.transpose(-2, -1) @ k) * self.scale).softmax(dim=-1)
        y = (v @ attention.transpose(-2, -1)).view(b, self.num_heads * self.head_dim, h, w)
        return x + self.proj(y + self.pe(v.reshape(b, self.num_heads * self.head_dim, h, w)))


class LinearAttention(Block):
    """EfficientViT's: keys and values meet first, three times `dim` channels a head."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.dim = max(2, width // 2)
        self.qkv = nn.Conv2d(inputs, 2 * 3 * self.dim, 1, bias=False)
        self.proj = nn.Sequential(nn.Conv2d(2 * self.dim, inputs, 1, bias=False), nn.BatchNorm2d(inputs))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.qkv(x).reshape(b, -1, 3 * self.dim, h * w).transpose(-1, -2)
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = F.relu(q), F.relu(k)
        v = F.pad(v, (0, 1), mode="constant", value=1.0)
        out = q @ (k.transpose(-1, -2) @ v)
        out = out[..., :-1] / (out[..., -1:] + 1e-3)
        return x + self.proj(out.transpose(-1, -2).reshape(b, -1, h, w))


class CrossCovariance(Block):
    """XCiT's: channels of a head attend to each other, at unit length over positions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.heads = 2
        self.temperature = nn.Parameter(torch.rand(2, 1, 1) + 0.5)
        inner = even(width)
        self.qkv, self.out = nn.Conv2d(inputs, 3 * inner, 1), nn.Conv2d(inner, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, -1, h * w).unbind(1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return x + self.out((attention @ v).reshape(b, -1, h, w))


class MultiQuery(Block):
    """MobileNetV4's: several query heads share one key and one value."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.num_heads, self.key_dim = 2, max(2, width // 2)
        self.query, self.key, self.value = (
            conv(inputs, n * self.key_dim, 1, bias=False) for n in (self.num_heads, 1, 1)
        )
        self.output = conv(self.num_heads * self.key_dim, inputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q = self.query(x).reshape(b, self.num_heads, self.key_dim, -1).transpose(-1, -2)
        k = self.key(x).reshape(b, self.key_dim, -1).transpose(1, 2).unsqueeze(1)
        v = self.value(x).reshape(b, self.key_dim, -1).transpose(1, 2).unsqueeze(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.output(y.transpose(1, 2).reshape(b, h, w, -1).permute(0, 3, 1, 2))


class Multihead(Block):
    """torch's own module, whose width is checked against the input's."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.attention = nn.MultiheadAttention(inputs, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class ClassToken(Block):
    """A learned token and positions beside 2 × 2 pooled ones; the token gates the map."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs)
        self.token = nn.Parameter(torch.randn(1, 1, inputs))
        self.position = nn.Parameter(torch.randn(1, 5, inputs))
        self.norm, self.mix, self.mlp = nn.LayerNorm(inputs), nn.Linear(5, 5), nn.Linear(inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(x), -1, -1), tokens), dim=1) + self.position
        tokens = self.norm(tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        return x * torch.sigmoid(self.mlp(tokens)[:, 0])[:, :, None, None]


ATTENTION: dict[str, Piece] = {
    "non-local, softmax": Piece(lambda c, w: NonLocal(c, w, softmax=True)),
    "non-local, dot product": Piece(lambda c, w: NonLocal(c, w, softmax=False)),
    "double attention": Piece(
        DoubleAttention, expected="frozen", notes="the gathered vectors are a width, too: a softmax runs over them"
    ),
    "self-attention": Piece(lambda c, w: TokenAttention(c, w, fused=False), multiple=2),
    "self-attention, fused": Piece(
        lambda c, w: TokenAttention(c, w, fused=True),
        multiple=2,
        expected="frozen",
        notes="the default scale is that of the heads' width, which may stay",
    ),
    "self-attention, sizes of x": Piece(
        ShapedAttention, multiple=2, expected="frozen", notes="the heads' width is the input's: equal counts"
    ),
    "self-attention, convolution and chunk": Piece(ConvAttention),
    "self-attention, unequal parts": Piece(UnequalAttention),
    "linear attention": Piece(LinearAttention, notes="a column of ones beside the values"),
    "cross-covariance attention": Piece(CrossCovariance, notes="a softmax over the kept channels"),
    "multi-query attention": Piece(
        MultiQuery, expected="frozen", notes="the default scale is that of the heads' width, which may stay"
    ),
    "MultiheadAttention": Piece(
        Multihead, multiple=2, expected="frozen", prunes=False, notes="its checks tie the width to the heads' width"
    ),
    "class token and positions": Piece(ClassToken, expected="frozen", notes="positions are no channels"),
    "Gram matrix of channels": Piece(
        lambda c, w: Written(
            lambda m, x: x + torch.bmm((x.flatten(2) @ x.flatten(2).mT).softmax(-1), x.flatten(2)).view_as(x), c
        ),
        notes="a softmax over the kept channels",
    ),
}
