"""One small network an operation: what the trace says about it, and that pruning by it is right.

`exact` networks are halved and compared with the silenced original; `kept` ones must say which operation froze them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.silenced import half_plan, randomise, worst_difference
from torch import Tensor, nn

from prunus.errors import SurgeryError, TraceError
from prunus.graph.findings import Call, Findings
from prunus.graph.rules import RULES, pointwise, rule
from prunus.graph.rules.table import Rule
from prunus.graph.tape import Tape
from prunus.graph.trace import trace
from prunus.surgery import apply_attributes, module_attributes, remove
from prunus.verify import verify


class Between(nn.Module):
    """conv(3 → width) → BatchNorm → ReLU → the function under test → conv → mean → linear, in 2d."""

    def __init__(
        self, middle: Callable[[Tensor], Tensor], width: int = 8, after: int | None = None, **parts: nn.Module
    ):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        for name, part in parts.items():
            self.add_module(name, part)
        self.last = nn.Conv2d(after or width, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(self.last(self.middle(self, x)).mean((2, 3)))


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ZeroPad(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.padding = (before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, *self.padding))


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


EXACT: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "plain": (lambda: Between(lambda m, x: x), {"first": 8, "last": 6}),
    "residual sum": (lambda: Between(lambda m, x: x + m.c(x), c=conv(8, 8)), {"first": 8, "last": 6}),
    "in-place sum": (lambda: Between(lambda m, x: m.c(x).add_(x), c=conv(8, 8)), {"first": 8, "last": 6}),
    "sum into a view": (
        lambda: Between(lambda m, x: (y := m.c(x), y.flatten(2).add_(x.flatten(2)))[0], c=conv(8, 8)),
        {"first": 8, "last": 6},
    ),
    "concatenation": (
        lambda: Between(lambda m, x: torch.cat([x, m.c(x)], 1), after=12, c=conv(8, 4)),
        {"first": 8, "c": 4, "last": 6},
    ),
    "concatenation in space": (
        lambda: Between(lambda m, x: torch.cat([x, m.c(x)], 2), c=conv(8, 8)),
        {"first": 8, "last": 6},
    ),
    "squeeze and excite": (
        lambda: Between(
            lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))),
            down=nn.Conv2d(8, 4, 1),
            up=nn.Conv2d(4, 8, 1),
        ),
        {"first": 8, "down": 4, "last": 6},
    ),
    "one-channel mask": (
        lambda: Between(lambda m, x: x * torch.sigmoid(m.c(x)), c=conv(8, 1)),
        {"first": 8, "last": 6},
    ),
    "depthwise": (lambda: Between(lambda m, x: m.c(x), c=conv(8, 8, groups=8)), {"first": 8, "last": 6}),
    "depthwise with multiplier": (
        lambda: Between(lambda m, x: m.c(x), after=16, c=conv(8, 16, groups=8)),
        {"first": 8, "last": 6},
    ),
    "grouped": (
        lambda: Between(lambda m, x: m.c(x), after=4, c=conv(8, 4, groups=2)),
        {"first": 4, "c": 2, "last": 6},
    ),
    "transposed": (
        lambda: Between(lambda m, x: m.c(x), after=4, c=nn.ConvTranspose2d(8, 4, 2, stride=2)),
        {"first": 8, "c": 4, "last": 6},
    ),
    "chunk": (
        lambda: Between(lambda m, x: torch.cat([x.chunk(2, 1)[1], m.c(x.chunk(2, 1)[0])], 1), after=10, c=conv(4, 6)),
        {"first": 4, "c": 6, "last": 6},
    ),
    "shuffle": (lambda: Between(lambda m, x: shuffle(x)), {"first": 4, "last": 6}),
    "flatten to linear": (
        lambda: Between(lambda m, x: m.c(x.flatten(1))[:, :, None, None], after=4, c=nn.Linear(8 * 64, 4)),
        {"first": 8, "c": 4, "last": 6},
    ),
    "linear without bias": (
        lambda: Between(lambda m, x: x * m.c(x.mean((2, 3)))[:, :, None, None], c=nn.Linear(8, 8, bias=False)),
        {"first": 8, "last": 6},
    ),
    "channels last": (
        lambda: Between(
            lambda m, x: m.c(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), after=4, c=nn.Linear(8, 4, bias=False)
        ),
        {"first": 8, "c": 4, "last": 6},
    ),
    "zero padding": (
        lambda: Between(lambda m, x: m.pad(x) + m.c(x), after=14, c=conv(8, 14), pad=ZeroPad(2, 4)),
        {"first": 8, "c": 6, "last": 6},
    ),
    "pooling": (
        lambda: Between(lambda m, x: F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(x, 2), 2), 2)),
        {"first": 8, "last": 6},
    ),
    "interpolation": (lambda: Between(lambda m, x: F.interpolate(x, scale_factor=2)), {"first": 8, "last": 6}),
    "dropout": (lambda: Between(lambda m, x: F.dropout(x, 0.5, m.training)), {"first": 8, "last": 6}),
    "buffer scale": (
        lambda: Between(lambda m, x: m.bn(x) * 2 + 1, bn=nn.BatchNorm2d(8, affine=False)),
        {"first": 8, "last": 6},
    ),
    "prelu": (lambda: Between(lambda m, x: m.act(x), act=nn.PReLU(8)), {"first": 8, "last": 6}),
    "flip in space": (lambda: Between(lambda m, x: x.flip(3)), {"first": 8, "last": 6}),
    "shared module": (lambda: Between(lambda m, x: m.c(m.c(x)), c=conv(8, 8)), {"first": 8, "last": 6}),
    "made alike": (
        lambda: Between(lambda m, x: x + torch.zeros_like(x) + torch.ones_like(x) * torch.full_like(x, 2.0)),
        {"first": 8, "last": 6},
    ),
    "noise alike": (
        lambda: Between(
            lambda m, x: x + 0 * (torch.rand_like(x) + torch.randn_like(x) + torch.empty_like(x).uniform_().normal_())
        ),
        {"first": 8, "last": 6},
    ),
    "filled": (
        lambda: Between(lambda m, x: torch.empty_like(x).copy_(x) + torch.empty_like(x).fill_(1.0) + x.clone().zero_()),
        {"first": 8, "last": 6},
    ),
    "other types": (
        lambda: Between(lambda m, x: (x.double() + x.detach()).to(x.dtype) * torch.tensor(2.0)),
        {"first": 8, "last": 6},
    ),
    "an axis more": (
        lambda: Between(lambda m, x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).sum(2) + x.unsqueeze(0).squeeze(0)),
        {"first": 8, "last": 6},
    ),
    "rows one by one": (
        lambda: Between(lambda m, x: x.unbind(2)[0].unsqueeze(2) + x[:, :, 1].unsqueeze(2) + x),
        {"first": 8, "last": 6},
    ),
    "extremes over space": (
        lambda: Between(lambda m, x: x - x.amax((2, 3), keepdim=True) + x.amin(3, keepdim=True)),
        {"first": 8, "last": 6},
    ),
    "other poolings": (
        lambda: Between(lambda m, x: F.adaptive_max_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear"), 4)),
        {"first": 8, "last": 6},
    ),
    "other paddings": (
        lambda: Between(lambda m, x: F.pad(F.pad(x, (1, 1, 1, 1), mode="reflect"), (1, 1, 1, 1), mode="replicate")),
        {"first": 8, "last": 6},
    ),
    "whole slice": (lambda: Between(lambda m, x: x[:, :, ::1][:, ::1, ::2]), {"first": 8, "last": 6}),
    "stripes": (lambda: Between(lambda m, x: sum(x.split(4, 2))), {"first": 8, "last": 6}),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str) -> None:
    torch.manual_seed(0)
    build, sizes = EXACT[name]
    model = randomise(build())
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert {group.name: group.size for group in graph.groups} == sizes
    assert [freeze.reason for freeze in graph.frozen] == ["it is an output of the model"]
    plan = half_plan(graph)
    pruned = remove(model, graph, plan)
    assert sum(p.numel() for p in pruned.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    assert verify(model, pruned, graph, plan, x).passed
    for training in (False, True) if name != "dropout" else (False,):
        assert worst_difference(model, pruned, graph, plan, x, training=training) <= 1e-10


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer norm": (
        lambda: Between(lambda m, x: m.ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ln=nn.LayerNorm(8)),
        "native_layer_norm mixes channels (in ln: LayerNorm)",
    ),
    "group norm": (
        lambda: Between(lambda m, x: m.gn(x), gn=nn.GroupNorm(2, 8)),
        "native_group_norm mixes channels (in gn: GroupNorm)",
    ),
    "cut at a number": (lambda: Between(lambda m, x: x[:, :4], after=4), "aten.slice cuts it at a fixed position"),
    "unequal split": (lambda: Between(lambda m, x: x.split([3, 5], 1)[1], after=5), "cuts it into unequal pieces"),
    "mean over channels": (lambda: Between(lambda m, x: x - x.mean(1, keepdim=True)), "aten.mean runs over channels"),
    "softmax over channels": (lambda: Between(lambda m, x: x.softmax(1)), "aten._softmax has no rule"),
    "fixed tensor": (lambda: Between(lambda m, x: x * torch.ones(8, 1, 1)), "meets a tensor of fixed size"),
    "padding by a literal": (
        lambda: Between(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)), after=12),
        "no attribute of the module stores",
    ),
    "constant beside": (
        lambda: Between(
            lambda m, x: torch.cat([x, torch.zeros(len(x), 2, *x.shape[2:])], 1) + m.c(x), after=10, c=conv(8, 10)
        ),
        "meets positions whose number is fixed",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_whole_with_the_reason(name: str) -> None:
    torch.manual_seed(0)
    build, reason = KEPT[name]
    model = randomise(build())
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert any(reason in freeze.reason for freeze in graph.frozen), graph.frozen
    assert "last" in {group.name for group in graph.groups}
    plan = half_plan(graph)
    assert verify(model, remove(model, graph, plan), graph, plan, x).passed


def test_a_mode_that_only_training_has_is_joined() -> None:
    """An auxiliary head that runs in training mode only is pruned along."""

    class Auxiliary(Between):
        def __init__(self) -> None:
            super().__init__(lambda m, x: x)
            self.drop, self.aux = nn.Dropout(0.0), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            y = F.relu(self.norm(self.first(x)))
            out = self.head(self.last(self.drop(y)).mean((2, 3)))
            return (out, self.aux(y.mean((2, 3)))) if self.training else (out,)

    model, x = Auxiliary(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert ("aux.weight", 1) in graph.group("first").tensors
    pruned = remove(model, graph, half_plan(graph)).train()
    assert [tuple(out.shape) for out in pruned(x)] == [(2, 5), (2, 5)]


def said(name: str) -> object:
    """Everything that a trace says about a network above."""
    build = (EXACT | KEPT)[name][0]
    graph = trace(build(), torch.randn(2, 3, 8, 8))
    groups = [(group.name, group.channels.tolist(), group.tensors) for group in graph.groups]
    return groups, graph.frozen, graph.contractions, [layer.norm for layer in graph.layers]


def test_deleting_any_rule_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rule is idle: without it, some network above that calls it reads differently."""
    callers: dict[Any, set[str]] = {packet: set() for packet in RULES}
    current = ""

    def noted(packet: Any, original: Rule) -> Rule:
        def call(tape: Tape, findings: Findings, call: Call) -> None:
            callers[packet].add(current)
            original(tape, findings, call)

        return call

    with monkeypatch.context() as patch:
        for packet, original in list(RULES.items()):
            patch.setitem(RULES, packet, noted(packet, original))
        expected = {}
        for current in EXACT | KEPT:  # `noted` reads it
            expected[current] = said(current)
    idle = []
    for packet in list(RULES):
        with monkeypatch.context() as patch:
            patch.delitem(RULES, packet)
            if all(said(name) == expected[name] for name in sorted(callers[packet])):
                idle.append(str(packet))
    assert idle == []


def test_an_operation_gets_one_rule() -> None:
    with pytest.raises(ValueError, match="has a rule already: cat"):
        rule(torch.ops.aten.cat)(pointwise)
    assert RULES[torch.ops.aten.cat].__name__ == "cat"


def test_a_model_that_needs_values_says_so() -> None:
    model = Between(lambda m, x: x * float(x.sum().item()))
    with pytest.raises(
        TraceError, match=r"could not be run on channel labels in evaluation mode.*forward does not need"
    ):
        trace(model, torch.randn(1, 3, 8, 8))
    with pytest.raises(TraceError, match="no tensor with a batch axis"):
        trace(model, ())


def test_another_model_is_refused() -> None:
    graph = trace(Between(lambda m, x: x), torch.randn(1, 3, 8, 8))
    other = Between(lambda m, x: x, width=4)
    with pytest.raises(SurgeryError, match=r"traced from another network: first.weight is \(4, 3, 3, 3\) here"):
        remove(other, graph, half_plan(graph))


def test_sizes_travel_as_plain_data() -> None:
    torch.manual_seed(0)
    model, x = EXACT["zero padding"][0](), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    attributes = module_attributes(remove(model, graph, half_plan(graph)))
    assert attributes["first"] == {"in_channels": 3, "out_channels": 4, "groups": 1}
    assert sum(attributes["pad"]["padding"]) == 3  # type: ignore[arg-type]
    apply_attributes(model, attributes)
    assert module_attributes(model) == attributes
    for bad in (
        {"nobody": {"out_channels": 3}},
        {"first": {"stride": 2}},
        {"first": {"out_channels": -1}},
        {"pad": {"padding": [1]}},
    ):
        with pytest.raises(SurgeryError):
            apply_attributes(model, bad)


def test_training_mode_counts_without_any_module_that_knows_it() -> None:
    """A head that only `self.training` switches on is seen also where there is neither BatchNorm nor Dropout."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.first(x).mean((2, 3))
            return (self.head(y), self.aux(y)) if self.training else (self.head(y),)

    model, x = Plain(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert ("aux.weight", 1) in graph.group("first").tensors
    pruned = remove(model, graph, half_plan(graph)).train()
    assert [tuple(out.shape) for out in pruned(x)] == [(2, 5), (2, 5)]
