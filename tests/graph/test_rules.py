"""What a trace says about small networks, one a way to treat channels, and that pruning by it is right.

`EXACT` networks and `VARIANTS` are halved and compared with the original; `KEPT` ones must say what kept some whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.graph.between import Between, Case
from tests.graph.operations import EXACT, KEPT
from tests.graph.variants import VARIANTS
from tests.silenced import half_plan, randomise, worst_difference
from torch import Tensor, nn

from prunus.errors import SurgeryError, TraceError
from prunus.graph.channels import ChannelGraph
from prunus.graph.findings import Call, Findings
from prunus.graph.numbering import label_tensor
from prunus.graph.rules import RULES, apply, pointwise, rule
from prunus.graph.rules.table import Rule
from prunus.graph.tape import Tape
from prunus.graph.trace import trace
from prunus.surgery import apply_attributes, module_attributes, remove
from prunus.verify import verify

CASES: Mapping[str, Case] = {**EXACT, **VARIANTS, **KEPT}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(CASES[name].build())


def test_names_differ() -> None:
    assert len(CASES) == len(EXACT) + len(VARIANTS) + len(KEPT)


def has_products(graph: ChannelGraph) -> bool:
    """Whether activations are multiplied with one another: a silenced copy of a model cannot ignore channels there."""
    return any("bmm" in site.op for site in graph.sites)


@pytest.mark.parametrize("name", [*EXACT, *VARIANTS])
def test_exact(name: str) -> None:
    model, case, x = built(name), CASES[name], CASES[name].inputs()
    graph = trace(model, x)
    assert {group.name: group.size for group in graph.groups} == case.sizes
    assert {g.name: "".join(map(str, g.pieces)) for g in graph.groups if g.pieces is not None} == case.pieces
    for group in graph.groups:
        counts = group.counts.tolist()
        whole = [int((group.piece_of == piece).sum()) for piece in range(len(counts[0]))]
        assert counts[-1] == whole
        assert [size // 2 for size in whole] in counts
    assert [freeze.reason for freeze in graph.frozen] == ["it is an output of the model"]
    plan = half_plan(graph)
    pruned = remove(model, graph, plan)
    assert sum(p.numel() for p in pruned.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    verification = verify(model, pruned, graph, plan, x)
    assert verification.passed, verification
    assert verification.mixing == case.mixing
    if case.mixing or has_products(graph):
        assert pruned.train()(x).shape == (2, 5)
        return
    for training in (False,) if case.draws else (False, True):
        assert worst_difference(model, pruned, graph, plan, x, training=training) <= 1e-10


@pytest.mark.parametrize("name", KEPT)
def test_kept_whole_with_the_reason(name: str) -> None:
    model, case, x = built(name), KEPT[name], KEPT[name].inputs()
    graph = trace(model, x)
    assert {group.name: group.size for group in graph.groups} == case.sizes
    found = [freeze for freeze in graph.frozen if freeze.reason != "it is an output of the model"]
    assert [case.reason in freeze.reason for freeze in found] == [True], found
    assert found[0].op == case.op
    assert ("operations.py" in found[0].where) == bool(case.op), found[0].where
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
    """Everything that a trace says about a network."""
    graph = trace(built(name), CASES[name].inputs())
    groups = [(g.name, g.channels.tolist(), g.tensors, g.piece_of.tolist(), g.counts.tolist()) for g in graph.groups]
    sites = [(site.op, site.index, site.gathers) for site in graph.sites]
    return groups, graph.frozen, graph.contractions, [layer.norm for layer in graph.layers], sites


def fused_norm() -> object:
    """What is said about the channels of a call that only CUDA makes."""
    tape, x, weight = Tape(), torch.empty(2, 4, 8), torch.empty(8)
    label_tensor(tape, "x", x)
    label_tensor(tape, "weight", weight)
    out = (torch.empty(2, 4, 8), torch.empty(2, 4, 1))
    findings = Findings()
    tape.op = "aten._fused_rms_norm"
    findings.counts[tape.op] += 1
    apply(tape, findings, Call(torch.ops.aten._fused_rms_norm.default, (x, [8], weight, 1e-6), {}, out))
    return [own.tolist() for own in tape.read(out[0])], len(tape.unions), [site.op for site in findings.sites]


def test_the_fused_norm() -> None:
    fields, unions, sites = fused_norm()  # type: ignore[misc]
    assert len(fields) == 3  # one along each axis
    assert unions == 1
    assert sites == ["aten._fused_rms_norm"]


def test_deleting_any_rule_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rule is idle: without it, some network that calls it reads differently or cannot be traced."""
    callers: dict[Any, list[Callable[[], object]]] = {packet: [] for packet in RULES}
    callers[torch.ops.aten._fused_rms_norm].append(fused_norm)
    expected: dict[Callable[[], object], object] = {fused_norm: fused_norm()}
    met: set[Any] = set()

    def noted(packet: Any, original: Rule) -> Rule:
        def call(tape: Tape, findings: Findings, call: Call) -> None:
            met.add(packet)
            original(tape, findings, call)

        return call

    with monkeypatch.context() as patch:
        for packet, original in list(RULES.items()):
            patch.setitem(RULES, packet, noted(packet, original))
        for name in CASES:
            met.clear()
            read = partial(said, name)
            expected[read] = read()
            for packet in met:
                callers[packet].append(read)
    idle = []
    for packet in list(RULES):
        with monkeypatch.context() as patch:
            patch.delitem(RULES, packet)
            if all(_reads(read, expected[read]) for read in callers[packet]):
                idle.append(str(packet))
    assert idle == []


def _reads(read: Callable[[], object], expected: object) -> bool:
    """Whether a network reads as expected; one that cannot be traced does not."""
    try:
        return read() == expected
    except Exception:
        return False


def test_an_operation_gets_one_rule() -> None:
    with pytest.raises(ValueError, match="has a rule already: cat"):
        rule(torch.ops.aten.cat)(pointwise)
    assert RULES[torch.ops.aten.cat].__name__ == "cat"


def test_a_model_that_needs_values_runs_on_its_inputs() -> None:
    torch.manual_seed(0)
    model = randomise(Between(lambda m, x: x * float(x.mean((2, 3)).max().item())))
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert {group.name: group.size for group in graph.groups} == {"first": 8, "last": 6}
    plan = half_plan(graph)
    verification = verify(model, remove(model, graph, plan), graph, plan, x)
    assert verification.passed and verification.mixing == ("aten.max",)


def test_a_model_that_does_not_run_says_so() -> None:
    model = Between(lambda m, x: x @ x.flatten(1))
    with pytest.raises(TraceError, match="could not be run, neither on channel labels nor on its real inputs"):
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
    model, x = EXACT["zero padding"].build(), EXACT["zero padding"].inputs()
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
