"""An optimiser that is carried over goes on as the original's would, whose removed channels are silent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

import prunus
from prunus.errors import ConfigError, SurgeryError
from prunus.graph.channels import ChannelGraph
from prunus.models import build_model
from prunus.plan import PruningPlan, plan_from_keep
from prunus.surgery import selections
from prunus.verify import silence
from tests.silenced import half_plan, randomise

X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1, 3, 5, 7])

Make = Callable[[Iterable[Any]], Optimizer]
ELEMENTWISE: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, foreach=False),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "adam": lambda p: torch.optim.Adam(p, lr=0.002, weight_decay=0.01),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.002, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.0005, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.002),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.002),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.002),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01, t0=1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.001),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(build_model("resnet8")).double().train()


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    """All parameters, those of one axis without weight decay, as is usual."""
    flat = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    rest = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    return [{"params": rest, "lr": 0.003}, {"params": flat, "weight_decay": 0.0}]


def train(model: nn.Module, optimizer: Optimizer, steps: int, after: Callable[[], None] = lambda: None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        after()


def same_state(found: Optimizer, expected: Optimizer) -> None:
    """Compare two optimisers' state dicts bit for bit."""
    a, b = found.state_dict(), expected.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for number, values in a["state"].items():
        assert values.keys() == b["state"][number].keys()
        for key, value in values.items():
            other = b["state"][number][key]
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, (number, key)


class Silenced:
    """The original with silent channels, and which elements of its parameters the pruned network has."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> None:
        self.model = silence(model, graph, plan)
        chosen = selections(model, graph, plan)
        self.kept = {
            name: chosen[name].take(torch.arange(parameter.numel()).reshape(parameter.shape)).flatten()
            for name, parameter in model.named_parameters()
        }
        self.start = copy.deepcopy(dict(self.model.named_parameters()))

    def hush(self) -> None:
        """Put all that is removed back to where it was: there the gradients are others."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                now = self.start[name].flatten().clone()
                now[self.kept[name]] = parameter.flatten()[self.kept[name]]
                parameter.copy_(now.reshape(parameter.shape))

    def compare(self, pruned: nn.Module) -> float:
        found = dict(pruned.named_parameters())
        differences = [
            float((parameter.detach().flatten()[self.kept[name]] - found[name].detach().flatten()).abs().max())
            for name, parameter in self.model.named_parameters()
        ]
        return max(differences)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_next_steps_are_those_of_the_silenced_original(name: str) -> None:
    model = network()
    optimizer = ELEMENTWISE[name](two_groups(model))
    train(model, optimizer, 3)
    graph = prunus.trace(model, X)
    plan = half_plan(graph)
    pruned = prunus.remove(model, graph, plan)
    migrated = prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan))
    assert type(migrated) is type(optimizer)

    reference = Silenced(model, graph, plan)
    old = ELEMENTWISE[name](two_groups(reference.model))
    old.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(reference.model, old, 3, reference.hush)
    before = copy.deepcopy(pruned)
    train(pruned, migrated, 3)
    assert reference.compare(pruned) < 1e-10, "Adam and its kin make rounding larger where gradients are small"
    assert reference.compare(before) > 1e-4, "the steps are seen"

    if name != "plain sgd":  # a fresh optimiser would go elsewhere: the state matters
        train(before, ELEMENTWISE[name](two_groups(before)), 3)
        assert reference.compare(before) > 1e-8


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_where_everything_stays_nothing_changes(name: str) -> None:
    model = network()
    optimizer = ELEMENTWISE[name](two_groups(model))
    train(model, optimizer, 2)
    graph = prunus.trace(model, X)
    plan = plan_from_keep(graph, graph.keep_all())
    pruned = prunus.remove(model, graph, plan)
    migrated = prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan))
    same_state(migrated, optimizer)

    saved = copy.deepcopy(optimizer.state_dict())
    train(pruned, migrated, 2)
    now = optimizer.state_dict()
    assert now["param_groups"] == saved["param_groups"]
    for number, values in saved["state"].items():  # the original and its state are as they were
        assert all(torch.equal(value, now["state"][number][key]) for key, value in values.items() if value is not None)

    train(model, optimizer, 2)
    same_state(migrated, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), model.parameters(), strict=True))


@pytest.fixture
def cut() -> tuple[nn.Module, nn.Module, ChannelGraph, PruningPlan]:
    model = network()
    graph = prunus.trace(model, X)
    plan = half_plan(graph)
    return model, prunus.remove(model, graph, plan), graph, plan


def test_what_prune_returns_will_do() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    result = prunus.prune(model, X, pruning_ratio=0.5)
    migrated = prunus.migrate_optimizer(optimizer, model, result)
    assert [id(p) for p in migrated.param_groups[0]["params"]] == [id(p) for p in result.model.parameters()]
    assert all(migrated.state[p]["momentum_buffer"].shape == p.shape for p in result.model.parameters())


def test_no_parameter_joins_or_leaves(cut: tuple[nn.Module, nn.Module, ChannelGraph, PruningPlan]) -> None:
    model, pruned, graph, plan = cut
    held = [parameter for name, parameter in model.named_parameters() if not name.startswith("conv")]
    held[0].requires_grad_(False)
    pruned = prunus.remove(model, graph, plan)
    optimizer = torch.optim.Adam([{"params": held[3:]}, {"params": held[:3][::-1], "lr": 0.5}])
    optimizer.add_param_group({"params": []})
    train(model, optimizer, 1)
    migrated = prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan))

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    new_names = {id(parameter): name for name, parameter in pruned.named_parameters()}
    for old, new in zip(optimizer.param_groups, migrated.param_groups, strict=True):
        assert [names[id(p)] for p in old["params"]] == [new_names[id(p)] for p in new["params"]]
        assert {**old, "params": []} == {**new, "params": []}
    frozen = migrated.param_groups[1]["params"][-1]
    assert not frozen.requires_grad and frozen not in migrated.state
    train(pruned, migrated, 1)


def test_tied_parameters_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
            self.third.weight = self.second.weight
            self.head = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            x = x + self.second(x).relu()
            return self.head((x + self.third(x)).relu().mean((2, 3)))

    torch.manual_seed(0)
    model = Tied().double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 2)
    result = prunus.prune(model, X, pruning_ratio=0.5)
    migrated = prunus.migrate_optimizer(optimizer, model, result)
    assert len(migrated.param_groups[0]["params"]) == len(list(result.model.parameters())) == 7
    assert result.model.third.weight is result.model.second.weight in migrated.state
    train(result.model, migrated, 1)


def test_state_follows_the_pruned_networks_type(cut: tuple[nn.Module, nn.Module, ChannelGraph, PruningPlan]) -> None:
    model, pruned, graph, plan = cut
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    migrated = prunus.migrate_optimizer(optimizer, model, (pruned.float(), graph, plan))
    assert all(state["exp_avg"].dtype == torch.float32 for state in migrated.state.values())
    assert all(state["step"] == 1 for state in migrated.state.values())


def test_switches_of_a_class_are_kept(cut: tuple[nn.Module, nn.Module, ChannelGraph, PruningPlan]) -> None:
    class Switched(torch.optim.SGD):
        def __init__(self, params: Any, warm: bool) -> None:
            super().__init__(params, lr=0.1)
            self.warm = warm

    model, pruned, graph, plan = cut
    optimizer = Switched(model.parameters(), warm=True)
    assert prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan)).warm
    optimizer.buffers = [torch.zeros(3)]
    with pytest.raises(
        ConfigError, match="Switched cannot be carried over: it keeps 'buffers', a list, beside its state"
    ):
        prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan))


SCHEDULES: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9),
    "step": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.3),
    "warm up": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=12),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_that_is_pointed_at_it_goes_on(
    name: str, cut: tuple[nn.Module, nn.Module, ChannelGraph, PruningPlan]
) -> None:
    model, pruned, graph, plan = cut

    def rates(optimizer: Optimizer, scheduler: Any, module: nn.Module) -> list[float]:
        found = []
        for _ in range(4):
            train(module, optimizer, 1)
            scheduler.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    alone = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1, momentum=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    undisturbed, scheduler = SCHEDULES[name](alone), SCHEDULES[name](optimizer)
    expected = rates(alone, undisturbed, model) + rates(alone, undisturbed, model)
    found = rates(optimizer, scheduler, model)
    migrated = prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan))
    scheduler.optimizer = migrated
    assert found + rates(migrated, scheduler, pruned) == expected
    assert optimizer.param_groups[0]["lr"] == found[-1] != migrated.param_groups[0]["lr"]


def test_adafactors_factors_of_a_convolution_are_cut_those_over_channels_refused() -> None:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, (3, 2)), nn.ReLU(), nn.Conv2d(6, 4, 1))
    model = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(4 * 4 * 5, 8)).double()
    graph = prunus.trace(model, X)
    plan = half_plan(graph)
    pruned = prunus.remove(model, graph, plan)
    optimizer = torch.optim.Adafactor(convolutions.parameters())
    train(model, optimizer, 2)
    migrated = prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan))
    chosen = selections(model, graph, plan)
    for name, old in model.named_parameters():
        for key in {"row_var", "col_var"} & set(optimizer.state.get(old, {})):
            cut = migrated.state[dict(pruned.named_parameters())[name]][key]
            full = chosen[name].take(optimizer.state[old][key].expand(old.shape))
            assert torch.equal(cut.expand(full.shape), full)
            assert cut.dim() == full.dim()
    assert tuple(migrated.state[pruned[0][2].weight]["row_var"].shape) == (3, 4, 3, 1)
    train(pruned, migrated, 1)

    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, 1)
    with pytest.raises(
        ConfigError, match=r"Adafactor cannot be carried over: its state 'row_var' of 2\.weight is a tensor"
    ):
        prunus.migrate_optimizer(optimizer, model, (pruned, graph, plan))


def test_what_cannot_be_cut_is_refused(cut: tuple[nn.Module, nn.Module, ChannelGraph, PruningPlan]) -> None:
    model, *rest = cut
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=2)
    with pytest.raises(ConfigError, match="LBFGS cannot be carried over: it keeps '_params', a list"):
        prunus.migrate_optimizer(lbfgs, model, tuple(rest))

    def loss() -> Tensor:
        lbfgs.zero_grad()
        value = F.cross_entropy(model(X), Y)
        value.backward()
        return value

    lbfgs.step(loss)
    with pytest.raises(ConfigError, match=r"LBFGS cannot be carried over: its state 'd' of conv1\.weight is a tensor"):
        prunus.migrate_optimizer(lbfgs, model, tuple(rest))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state["calls"] = 3
    with pytest.raises(ConfigError, match="SGD cannot be carried over: its state 'calls' belongs to no parameter"):
        prunus.migrate_optimizer(optimizer, model, tuple(rest))


def test_an_optimiser_of_another_network_is_refused(
    cut: tuple[nn.Module, nn.Module, ChannelGraph, PruningPlan],
) -> None:
    model, pruned, graph, plan = cut
    other = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(2, 5))], lr=0.1)
    with pytest.raises(
        ConfigError, match=r"SGD holds a tensor \(2, 5\) \(parameter group 0, place \d+\) that is not a "
    ):
        prunus.migrate_optimizer(other, model, (pruned, graph, plan))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SurgeryError, match="the pruned network is not what this plan makes of the original: conv1"):
        prunus.migrate_optimizer(optimizer, model, (model, graph, plan))
