"""Operations of a user's own: with a rule they are pruned, exactly; without one they are kept whole, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.silenced import half_plan
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.graph.rules import RULES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "custom_ops.md"
EXAMPLE, FURTHER = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """What the documented example leaves behind, run once: torch keeps an operation for good."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLE, str(DOCUMENT), "exec", dont_inherit=True), names)
    prunus.remove_op_rule(names["soft_clip"], names["blur"], names["contrast"])
    return names


@pytest.fixture
def ruled(example: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The example with its rules."""
    prunus.op_rule(example["soft_clip"])(prunus.pointwise)
    prunus.op_rule(torch.ops.mine.blur)(prunus.over_space)
    prunus.op_rule(torch.ops.mine.contrast.default)(prunus.over_channels)
    yield example
    prunus.remove_op_rule(example["soft_clip"], example["blur"], example["contrast"])


def test_the_documented_example_prunes_exactly(example: dict[str, Any]) -> None:
    result = example["result"]
    assert result.verification.passed
    assert result.verification.mixing == ("mine.contrast",)
    assert [(group.name, group.size, len(group.keep)) for group in result.plan.groups] == [
        ("first", 16, 8),
        ("last", 8, 4),
    ]
    assert result.model.strength.shape == (8,)
    assert [freeze.reason for freeze in result.graph.frozen] == ["it is an output of the model"]


@pytest.mark.parametrize("name", ["soft_clip", "blur", "contrast"])
def test_without_its_rule_an_operation_is_kept_whole_by_name(name: str, ruled: dict[str, Any]) -> None:
    rule = RULES[getattr(torch.ops.mine, name)]
    prunus.remove_op_rule(ruled[name])
    try:
        result = prunus.prune(ruled["Net"](), torch.randn(2, 3, 16, 16), pruning_ratio=0.5)
    finally:
        prunus.op_rule(ruled[name])(rule)
    assert [group.name for group in result.plan.groups] == ["last"]
    reasons = {freeze.op: freeze.reason for freeze in result.graph.frozen}
    assert reasons[f"mine.{name}"] == f"mine.{name} has no rule for channels (in the model itself: Net)"
    assert result.verification.passed


def test_random_channels_also_agree(ruled: dict[str, Any]) -> None:
    """Strengths that differ, and kept channels that are not the first ones."""
    model, x = ruled["Net"](), torch.randn(2, 3, 16, 16)
    graph = prunus.trace(model, x)
    plan = half_plan(graph, seed=3)
    assert prunus.verify(model, prunus.remove(model, graph, plan), graph, plan, x).passed


def test_a_wrong_rule_gives_no_wrong_network(ruled: dict[str, Any]) -> None:
    """The mean over channels is not element-wise."""
    prunus.remove_op_rule(ruled["contrast"])
    prunus.op_rule(ruled["contrast"])(prunus.pointwise)
    result = prunus.prune(ruled["Net"](), torch.randn(2, 3, 16, 16), pruning_ratio=0.5)
    assert result.verification.passed
    assert [group.name for group in result.plan.groups] == ["last"]
    assert any("differ" in freeze.reason for freeze in result.graph.frozen)


def test_an_operation_has_one_rule(ruled: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"mine.blur has a rule already, over_space.*remove_op_rule\(torch.ops.mine.blur"
    ):
        prunus.op_rule(torch.ops.mine.blur)(prunus.pointwise)
    assert RULES[torch.ops.mine.blur] is prunus.over_space
    with pytest.raises(ConfigError, match=r"^aten.cat has no rule that prunus.op_rule gave it"):
        prunus.remove_op_rule(torch.ops.aten.cat)
    with pytest.raises(ConfigError, match=r"^aten.cat has a rule already, cat\.$"):
        prunus.op_rule(torch.ops.aten.cat)(prunus.pointwise)


@pytest.mark.parametrize("what", [torch.tanh, "mine::blur", None])
def test_what_is_no_operation_is_refused(what: object) -> None:
    with pytest.raises(ConfigError, match=r"no operation that a rule can be for; make one with torch.library"):
        prunus.op_rule(what)


def test_a_rule_of_another_kind(ruled: dict[str, Any]) -> None:
    """The second example, with the operation that it speaks of."""

    def sharpen(x: Tensor, keep_brightness: bool = False) -> Tensor:
        return 2 * x - torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)

    op = torch.library.custom_op("mine::sharpen", sharpen, mutates_args=())
    op.register_fake(lambda x, keep_brightness=False: torch.empty_like(x))
    exec(FURTHER, {"prunus": prunus, "torch": torch})

    class Net(nn.Module):
        def __init__(self, keep: bool) -> None:
            super().__init__()
            self.first, self.last, self.keep = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), keep

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.ops.mine.sharpen(self.first(x), self.keep)).mean((2, 3))

    x = torch.randn(2, 3, 16, 16)
    try:
        graphs = {keep: prunus.trace(Net(keep), x) for keep in (False, True)}
        assert prunus.prune(Net(False), x, pruning_ratio=0.5).verification.passed
    finally:
        prunus.remove_op_rule(op)
    assert [group.name for group in graphs[False].groups] == ["first"]
    assert not graphs[True].groups
    assert any("keeps the brightness of all channels together" in freeze.reason for freeze in graphs[True].frozen)
