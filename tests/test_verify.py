"""The proof itself: it passes what is right, names what mixes channels, and fails whatever is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from prunus.graph.trace import trace
from prunus.surgery import remove
from prunus.verify import Verification, verify
from tests.graph.operations import EXACT
from tests.silenced import half_plan, randomise


def proven(name: str, spoil: str = "", scale: float = 1.0) -> Verification:
    """Halve a network, scale one of the pruned network's tensors, and verify."""
    torch.manual_seed(0)
    model, x = randomise(EXACT[name].build()), EXACT[name].inputs()
    graph = trace(model, x)
    plan = half_plan(graph)
    pruned = remove(model, graph, plan)
    with torch.no_grad():
        if spoil:
            pruned.get_parameter(spoil).mul_(scale)
    return verify(model, pruned, graph, plan, x)


@pytest.mark.parametrize("name", ["layer norm", "group norm", "mean over channels", "softmax over channels"])
def test_statistics_are_those_of_the_kept_channels(name: str) -> None:
    verification = proven(name)
    assert verification.passed and verification.max_relative_error <= 1e-14
    assert verification.mixing == EXACT[name].mixing
    wrong = proven(name, "first.weight", 1.01)
    assert not wrong.passed and wrong.max_relative_error > 1e-6


def test_statistics_over_all_channels_are_others() -> None:
    """That only the kept ones count is no matter of course: the reference differs from a silenced copy."""
    torch.manual_seed(0)
    model, x = randomise(EXACT["layer norm"].build()), EXACT["layer norm"].inputs()
    graph = trace(model, x)
    plan = half_plan(graph)
    pruned = remove(model, graph, plan).eval()
    silent = model.eval()
    with torch.no_grad():
        dropped = ~torch.from_numpy(plan.keep_array(graph)[graph.group("last").channels])
        silent.head.weight[:, dropped] = 0  # the last group reaches the head without a norm
        removed = ~torch.from_numpy(plan.keep_array(graph)[graph.group("first").channels])
        silent.last.weight[:, removed] = 0
        assert (pruned(x) - silent(x)).abs().max() > 1e-4


def test_nothing_mixes_where_nothing_is_removed() -> None:
    torch.manual_seed(0)
    model, x = randomise(EXACT["layer norm"].build()), EXACT["layer norm"].inputs()
    verification = verify(model, model, graph := trace(model, x), half_plan(graph), x)
    assert not verification.passed  # the network that was not pruned is not the pruned one
    assert verification.mixing == ("aten.native_layer_norm",)


def test_a_network_that_does_not_run_fails() -> None:
    torch.manual_seed(0)
    model, x = randomise(EXACT["plain"].build()), EXACT["plain"].inputs()
    graph = trace(model, x)
    plan = half_plan(graph)
    pruned = remove(model, graph, plan)
    pruned.last = nn.Conv2d(8, 3, 3)
    verification = verify(model, pruned, graph, plan, x)
    assert not verification.passed and math.isnan(verification.max_relative_error)
    assert "the pruned network does not run" in verification.failure


def test_a_network_that_runs_another_way_fails() -> None:
    """A branch that the example did not take when the network was traced."""
    torch.manual_seed(0)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(y) if x.shape[-1] == 8 else y.mean(1, keepdim=True)

    model, x = Branching(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    plan = half_plan(graph)
    verification = verify(model, remove(model, graph, plan), graph, plan, torch.randn(2, 3, 9, 9))
    assert not verification.passed
    assert verification.failure == "the original runs differently here than it did when it was traced"


def test_not_a_number_is_never_equal() -> None:
    verification = proven("plain", "head.weight", float("nan"))
    assert not verification.passed and math.isinf(verification.max_relative_error)


class Shortening(nn.Module):
    """A norm that computes in float32 by name, as many do for half precision's sake, and a grid of that type."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.to(torch.float32).square().mean(1, keepdim=True) + 1e-6)
        return y + torch.linspace(0, 1, x.shape[-1], dtype=torch.float32)


def test_what_asks_for_float32_is_proven_in_float64() -> None:
    """Float32 would meet the float64 weights of the proof."""
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(nn.Conv2d(3, 64, 3), Shortening(), nn.Conv2d(64, 48, 3), nn.Flatten(), nn.Linear(48 * 16, 5))
    )
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    plan = half_plan(graph)
    verification = verify(model, remove(model, graph, plan), graph, plan, x)
    assert (verification.passed, verification.dtype) == (True, "float64")
    assert verification.max_relative_error <= 1e-13
