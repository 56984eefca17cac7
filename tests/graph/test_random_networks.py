"""Networks drawn at random from branches, sums, concatenations and shuffles: pruned, they equal the original."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.silenced import random_keep, randomise, worst_difference
from torch import Tensor, nn

from prunus.cost import count_cost, predict_cost
from prunus.graph.trace import trace
from prunus.plan import plan_from_keep
from prunus.surgery import remove
from prunus.verify import verify

KINDS = ("conv", "residual", "dense", "depthwise", "excite", "two branches", "halves", "shuffle", "pool")


class Block(nn.Module):
    """One step of a random network, from `inputs` to `outputs` channels."""

    def __init__(self, kind: str, inputs: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        kept = {"residual": inputs, "depthwise": inputs, "excite": inputs, "shuffle": inputs, "pool": inputs}
        self.outputs = kept.get(
            kind, {"dense": inputs + width, "two branches": 2 * width, "halves": inputs}.get(kind, width)
        )
        made = {"residual": inputs, "excite": width, "halves": inputs // 2}.get(kind, width)
        source = inputs // 2 if kind == "halves" else inputs
        self.conv = nn.Conv2d(
            source, inputs if kind == "depthwise" else made, 3, padding=1, groups=inputs if kind == "depthwise" else 1
        )
        self.norm = nn.BatchNorm2d(self.conv.out_channels)
        self.other = nn.Conv2d(width if kind == "excite" else inputs, inputs if kind == "excite" else width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pool":
            return F.max_pool2d(x, 3, 1, 1)
        if self.kind == "shuffle":
            n, c, h, w = x.shape
            return x.reshape(n, c // 2, 2, h, w).transpose(1, 2).reshape(n, c, h, w) if c % 2 == 0 else x
        if self.kind == "excite":
            return x * torch.sigmoid(
                self.other(
                    F.relu(self.norm(self.conv(F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3))))
                )
            )
        first, second = x.chunk(2, 1) if self.kind == "halves" else (x, x)
        y = F.relu(self.norm(self.conv(first)))
        if self.kind == "residual":
            return x + y
        if self.kind == "dense":
            return torch.cat([x, y], 1)
        if self.kind == "two branches":
            return torch.cat([y, self.other(x)], 1)
        return torch.cat([second, y], 1) if self.kind == "halves" else y


class Random(nn.Module):
    """A stem, the drawn blocks, and a classifier."""

    def __init__(self, kinds: list[tuple[str, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        blocks: list[nn.Module] = []
        channels = 6
        for kind, width in kinds:
            fits = kind not in ("halves", "shuffle") or (channels % 2 == 0 and channels > 4)
            blocks.append(Block(kind if fits else "conv", channels, width))
            channels = blocks[-1].outputs  # type: ignore[assignment]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    kinds=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 7)), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_pruned_equals_silenced(kinds: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model = randomise(Random(kinds))
    x = torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    plan = plan_from_keep(graph, random_keep(graph, np.random.default_rng(seed)))
    pruned = remove(model, graph, plan)
    assert verify(model, pruned, graph, plan, x).passed
    assert predict_cost(graph, plan.keep_array(graph)) == count_cost(pruned, x)
    for training in (False, True):
        assert worst_difference(model, pruned, graph, plan, x, training=training) <= 1e-10
