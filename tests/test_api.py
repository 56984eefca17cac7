"""The three-line road, on models of the user's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

import prunus
from prunus import api
from prunus.cost import count_cost, predict_cost
from prunus.criteria import LayerValues
from prunus.errors import BudgetError, ConfigError
from prunus.graph.ignore import with_outputs, without
from prunus.models import build_model
from prunus.verify import Verification


class Mine(nn.Module):
    """A network of the user's, with a branch and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.body(x)).mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Mine()


X = torch.randn(2, 3, 12, 12)


@pytest.mark.parametrize("name", ["mine", "resnet8", "mobilenetv2"])
def test_half_the_macs_in_three_lines(name: str) -> None:
    torch.manual_seed(0)
    model = Mine() if name == "mine" else build_model(name)
    dense = count_cost(model, X)
    result = prunus.prune(model, X, budget=prunus.Budget(macs=0.5))
    small = count_cost(result.model, X)
    assert 0.4 * dense.macs < small.macs <= 0.5 * dense.macs
    assert small == predict_cost(result.graph, result.plan.keep_array(result.graph))
    assert result.verification.passed and result.verification.max_relative_error < 1e-12
    assert type(result.model) is type(model) and result.model(X).shape == model(X).shape
    assert count_cost(model, X) == dense, "the original is untouched"


def test_channels_are_kept_by_what_they_deliver_as_measured_where_there_are_images(model: nn.Module) -> None:
    images = torch.randn(16, 3, 12, 12) * torch.tensor([4.0, 1.0, 0.25]).view(1, 3, 1, 1)
    half = prunus.Budget(macs=0.5)

    def plan(**settings: Any) -> prunus.PruningPlan:
        return prunus.prune(model, X, budget=half, **settings).plan

    free = plan()
    assert free == plan(criterion="delivered_energy", variance="data-free", calibration=images)
    measured = plan(calibration=images)
    assert measured == plan(criterion="delivered_energy", variance="calibrated", calibration=images)
    assert free.criterion == measured.criterion == "delivered_energy" and free.groups != measured.groups


def test_scores_per_cost_are_per_what_the_budget_limits() -> None:
    """All channels are worth the same: those go that save most, of parameters deep in the network, of MACs early."""
    torch.manual_seed(0)
    model = build_model("resnet8")

    def equal(layer: LayerValues) -> Tensor:
        return torch.ones(len(layer.weight))

    def left(**limit: float) -> tuple[float, float]:
        images, budget = torch.zeros(2, 3, 32, 32), prunus.Budget(**limit)
        small = count_cost(prunus.prune(model, images, criterion=equal, normalize="cost", budget=budget).model, images)
        dense = count_cost(model, images)
        return small.macs / dense.macs, small.params / dense.params

    macs, params = left(macs=0.5), left(params=0.5)
    assert macs[0] <= 0.5 < macs[1] and params[1] <= 0.5 < params[0]


def test_a_ratio_prunes_every_group(model: nn.Module) -> None:
    result = prunus.prune(model, X, pruning_ratio=0.5)
    assert [(group.size, len(group.keep)) for group in result.plan.groups] == [(16, 8), (16, 8)]


def test_steps_one_by_one_are_the_same(model: nn.Module) -> None:
    graph = prunus.trace(model, X)
    scores = prunus.score(model, graph, "l1_norm")
    plan = prunus.allocate(graph, scores, prunus.Budget(params=0.5), criterion="l1_norm")
    pruned = prunus.remove(model, graph, plan)
    assert prunus.verify(model, pruned, graph, plan, X).passed
    assert prunus.prune(model, X, criterion="l1_norm", budget=prunus.Budget(params=0.5)).plan == plan


def test_a_criterion_of_ones_own(model: nn.Module) -> None:
    result = prunus.prune(model, X, criterion=lambda layer: -layer.weight.flatten(1).norm(dim=1), pruning_ratio=0.25)
    strong = model.body[0].weight.flatten(1).norm(dim=1).argsort(descending=True)[:4]
    assert not set(strong.tolist()) & set(result.plan.groups[1].keep)


def test_an_iterator_of_calibration_serves_every_attempt(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    proven = api._proven

    def fails_first(*args: Any) -> Any:
        tries.append(len(tries))
        return proven(*args) if tries[-1] else (None, Verification(False, 1.0, 0.0, "float64", 0, 0, "no"))

    monkeypatch.setattr(api, "_proven", fails_first)
    batches = [(X, torch.tensor([0, 1]))]
    result = prunus.prune(model, X, criterion="taylor", pruning_ratio=0.5, calibration=iter(batches))
    assert tries == [0, 1] and result.verification.passed
    assert result.plan == prunus.prune(model, X, criterion="taylor", pruning_ratio=0.5, calibration=batches).plan


def test_recovery_is_that_of_the_functions_in_their_order(model: nn.Module) -> None:
    images = torch.randn(24, 3, 12, 12)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = [(images, torch.zeros(24, dtype=torch.long))]
    steps = ("recalibrate", "reconstruct")
    result = prunus.prune(model, X, pruning_ratio=0.5, calibration=iter(pairs), recover=steps)
    plain = prunus.prune(model, X, pruning_ratio=0.5, calibration=images)
    assert result.plan == plain.plan and result.verification.passed and result.seconds["recover"] > 0
    refitted, _ = prunus.reconstruct(model, plain.model, plain.graph, plain.plan, images)
    expected = prunus.recalibrate(refitted, images).state_dict()
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert not torch.equal(expected["head.weight"], plain.model.state_dict()["head.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_recovery_without_images_or_by_an_unknown_step_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"reconstruct looks at images: pass calibration=images, \(N, C, H, W\)"):
        prunus.prune(model, X, pruning_ratio=0.5, recover="reconstruct")
    with pytest.raises(ConfigError, match=r"no recovery step 'recalibrat'. Did you mean 'recalibrate'\?"):
        prunus.prune(model, X, pruning_ratio=0.5, recover=["recalibrat"], calibration=X)


def test_ignored_layers_keep_their_shape(model: nn.Module) -> None:
    result = prunus.prune(model, X, pruning_ratio=0.5, ignore=["stem"])
    assert [group.name for group in result.plan.groups] == ["body.0"]
    assert result.model.stem[0].out_channels == 16
    assert "ignore names it" in {freeze.reason for freeze in result.graph.frozen}
    assert not without(prunus.trace(model, X), ["stem", "body"]).groups
    with pytest.raises(ConfigError, match=r"no such layer; did you mean 'stem."):
        prunus.prune(model, X, pruning_ratio=0.5, ignore=["stem.8"])


def test_frozen_layers_keep_their_outputs_alone(model: nn.Module) -> None:
    result = prunus.prune(model, X, pruning_ratio=0.5, freeze=["body.2"])
    assert [group.name for group in result.plan.groups] == ["body.0"], "the sum holds the stem to as many"
    assert (result.model.body[2].in_channels, result.model.body[2].out_channels) == (8, 16)
    assert "freeze names a layer that produces it" in {freeze.reason for freeze in result.graph.frozen}
    result = prunus.prune(model, X, pruning_ratio=0.5, freeze="body.0")
    assert (result.model.body[0].in_channels, result.model.body[0].out_channels) == (8, 16)


def test_freezing_a_module_keeps_what_each_of_its_layers_gives(model: nn.Module) -> None:
    graph = prunus.trace(model, X)
    assert [group.name for group in with_outputs(graph, ["stem.1"]).groups] == ["body.0"], "a norm gives channels too"
    assert not with_outputs(graph, ["body"]).groups
    assert [group.size for group in with_outputs(graph, ["head"]).groups] == [16, 16], "the classes stay anyway"
    assert with_outputs(graph, []) is graph
    assert [group.name for group in with_outputs(graph, "body.0").groups] == ["stem.0"]


def test_freezing_an_unknown_layer_names_the_nearest(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"freeze names 'stem.8', but .* no such layer; did you mean 'stem."):
        prunus.prune(model, X, pruning_ratio=0.5, freeze=["stem.8"])
    with pytest.raises(
        ConfigError, match=r"freeze names 'zz', .* Its layers: body\.0, body\.2, head, stem\.0, stem\.1"
    ):
        prunus.prune(model, X, pruning_ratio=0.5, freeze=["zz"])


def test_ignore_and_freeze_together(model: nn.Module) -> None:
    with pytest.raises(BudgetError, match="is not reachable"):
        prunus.prune(model, X, budget=prunus.Budget(macs=0.9), ignore=["stem"], freeze=["body.0"])


def test_a_shared_parameter_is_one() -> None:
    class Tied(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.body[2].weight = self.body[0].weight

    result = prunus.prune(Tied(), X, budget=prunus.Budget(params=0.5))
    small = count_cost(result.model, X)
    assert small == predict_cost(result.graph, result.plan.keep_array(result.graph))
    assert small.params == sum(parameter.numel() for parameter in result.model.parameters())
    assert result.model.body[2].weight is result.model.body[0].weight


def test_clear_refusals(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="give one of budget"):
        prunus.prune(model, X)
    with pytest.raises(ConfigError, match="give one of budget"):
        prunus.prune(model, X, budget=prunus.Budget(macs=0.5), pruning_ratio=0.5)
    with pytest.raises(BudgetError, match="is not reachable"):
        prunus.prune(model, X, budget=prunus.Budget(macs=0.0001))


def test_a_size_written_into_forward_is_never_handed_back_broken() -> None:
    class Fixed(Mine):
        def forward(self, x: Tensor) -> Tensor:
            x = self.body(self.stem(x))
            return self.head(x.view(len(x), 16, -1).mean(2))

    result = prunus.prune(Fixed(), X, pruning_ratio=0.5)
    assert result.verification.passed
    assert [(group.name, len(group.keep)) for group in result.plan.groups] == [("stem.0", 8), ("body.0", 8)]
    (view,) = [freeze for freeze in result.graph.frozen if "view" in freeze.op]
    assert "test_api.py" in view.where


def test_pruning_leaves_no_hook_behind() -> None:
    """Else torch.compile, which is right after pruning, warns of hooks on all modules."""
    model = build_model("resnet8").eval()
    prunus.prune(model, torch.zeros(2, 3, 32, 32), pruning_ratio=0.3)
    assert not _has_any_global_hook()
