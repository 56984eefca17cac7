"""What is measured on images: maps made by hand, what is passed, and that the model stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tests.criteria.calibrated import BATCHES, IMAGES, LABELS, double, layers_of
from tests.handmade import SIDE, Concat, Row, row_graph
from tests.silenced import randomise
from torch import Tensor, nn

import prunus
from prunus.criteria import CRITERIA, LayerValues, score
from prunus.errors import ConfigError, TraceError
from prunus.graph.trace import trace


class Restless(Row):
    """Draws random numbers, counts its runs in a buffer, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.seen.append(x)
        return super().forward(x + 0.01 * torch.randn_like(x))


@pytest.mark.parametrize("name", ["taylor", "apoz", "hrank", "delivered_energy"])
def test_measuring_leaves_the_model_as_it_was(name: str) -> None:
    model = randomise(Restless()).double().train()
    model.bn1.eval()
    model.conv2.weight.grad = torch.ones_like(model.conv2.weight)
    model.fc.weight.requires_grad_(False)
    graph = trace(model, IMAGES)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    with torch.no_grad():
        score(model, graph, name, calibration=BATCHES)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training and model.conv1.training and not model.bn1.training and not model.seen
    assert [key for key, p in model.named_parameters() if p.grad is not None] == ["conv2.weight"]
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["fc.weight"]
    assert bool((model.conv2.weight.grad == 1).all())


# Maps


def test_the_rank_is_that_of_the_maps_after_the_non_linearity() -> None:
    """ReLU lets a diagonal through for channel 0 (rank 8), one row for channel 1 (rank 1), nothing for channel 2."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)
            self.fc = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.avg_pool2d(torch.relu(self.conv(x)), SIDE)).flatten(1)  # consumed with a rank of 1 or 0

    model = Net().double()
    model.conv.weight.data = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    maps = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.float64)
    maps[0, 0], maps[:, 1, 2], maps[:, 2] = torch.eye(SIDE), 1, -torch.eye(SIDE)
    maps[1, 0, :4, :4] = torch.eye(4)
    values = layers_of(model, "feature_rank", calibration=[maps[:1], maps[1:]])["conv"]
    assert values.feature_rank is not None and values.feature_rank.tolist() == [6, 1, 0]  # the mean of 8 and 4 is 6
    assert CRITERIA["hrank"](values).tolist() == [6, 1, 0]


def test_maps_without_a_non_linearity_are_taken_where_they_are_consumed() -> None:
    """Concat's first two meet no ReLU; `join` reads both, `left` shifted to one constant map: rank 1."""
    model = double(Concat())
    model.left.weight.data.zero_()
    model.left.bias = nn.Parameter(torch.ones(3, dtype=torch.float64))
    found = layers_of(model, "feature_rank")
    assert found["left"].feature_rank is not None and found["left"].feature_rank.tolist() == [1, 1, 1]
    assert found["right"].feature_rank is not None and found["right"].feature_rank.tolist() == [SIDE, SIDE]
    assert found["left"].zero_fraction is None  # nobody asked


# What is passed, and what is wrong with it


@pytest.mark.parametrize(
    ("criterion", "calibration", "message"),
    [
        ("taylor", None, r"taylor needs first_order, .* with labels; pass calibration=loader"),
        (
            "taylor",
            IMAGES,
            r"taylor needs labels to measure first_order, and batch 1 of calibration holds images alone",
        ),
        (
            "taylor",
            [BATCHES[0], IMAGES],
            r"batch 2 of calibration holds images alone; pass calibration=loader, an iter",
        ),
        ("taylor", BATCHES[0], r"holds images alone; .* such as \[\(images, labels\)\]"),
        ("taylor", [(IMAGES, LABELS[:3])], r"output \(7, 2\) and the labels \(3,\) of a calibration batch"),
        ("apoz", None, "apoz needs zero_fraction, which is measured on images; pass calibration=images"),
        ("apoz", (IMAGES, LABELS), r"batch 2 of calibration is a tensor of shape \(7,\); it should be images"),
        ("apoz", [{"x": IMAGES}], "batch 1 of calibration is dict"),
        ("hrank", None, "hrank needs feature_rank"),
        ("delivered_energy", None, r"delivered_energy needs variance, .* or variance=\"data-free\", which needs none"),
    ],
)
def test_calibration_that_will_not_do(criterion: str, calibration: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options = {"variance": "calibrated"} if criterion == "delivered_energy" else {}
        score(Row().double(), row_graph(), criterion, calibration=calibration, **options)


def test_no_batch_at_all() -> None:
    for criterion in ("taylor", "apoz", "l1_norm"):
        with pytest.raises(TraceError, match="at least one batch"):
            score(Row(), row_graph(), criterion, calibration=[])


def test_a_function_of_ones_own_says_what_it_needs() -> None:
    def mine(layer: LayerValues) -> Tensor:
        assert layer.feature_rank is not None and layer.first_order is not None and layer.zero_fraction is None
        assert layer.consumers is None and layer.coupled_norm is None
        return layer.feature_rank + layer.first_order.abs().sum(0)

    model = double(Row())
    needs = ("feature_rank", "first_order")
    found = prunus.prune(model, IMAGES, criterion=mine, pruning_ratio=0.5, calibration=iter(BATCHES), needs=needs)
    assert found.verification.passed
    with pytest.raises(ConfigError, match=r"mine needs f.* pass calibration="):
        score(model, found.graph, mine, needs=needs)
    with pytest.raises(ConfigError, match=r"needs names 'ranks', which no layer has; did you mean 'feature_rank'\?"):
        score(model, found.graph, mine, needs=["ranks"])


def test_only_what_is_needed_is_measured() -> None:
    """One look at the images for the criteria that want one, none for those that do not, whatever is passed."""
    model, runs = double(Row()), []
    model.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))

    def passes(criterion: str, **options: object) -> list[bool]:
        runs.clear()
        score(model, row_graph(), criterion, calibration=BATCHES, **options)
        return list(runs)

    assert passes("l1_norm") == passes("group_norm") == passes("delivered_energy", variance="data-free") == []
    assert passes("channel_sparsity", degree="hoyer") == []
    assert passes("channel_sparsity", degree="activation") == passes("hrank") == [False, False]
    assert passes("delivered_energy") == passes("delivered_energy", variance="calibrated") == [False, False]
    assert passes("taylor") == [True, True]


def test_a_loader_is_read_once_and_batch_by_batch() -> None:
    taken: list[int] = []

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(BATCHES):
            taken.append(number)
            yield batch

    score(double(Row()), row_graph(), "taylor", calibration=loader())
    assert taken == [0, 1]
    taken.clear()
    score(double(Row()), row_graph(), "l1_norm", calibration=loader())
    assert taken == [0]  # that there is one
