"""Reconstruction: what kept channels can say is restored exactly, and the rest as well as least squares can."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.recovery.networks import difference, same_tensors, without
from tests.silenced import half_plan, randomise
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunus
from prunus.errors import ConfigError
from prunus.recovery import compensate, reconstruct, reconstruction
from prunus.verify import silence


class Redundant(nn.Module):
    """Channels 5 and 7 of the first convolution are sums of others, in front of padding, strides and the like."""

    def __init__(self, behind: str = "bias", **options: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, bias=behind == "bias", **options)
        self.norm = nn.BatchNorm2d(6) if behind == "norm" else nn.Identity()
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            for tensor in (self.first.weight, self.first.bias):
                tensor[1] = 0.5 * tensor[0] - tensor[2] + tensor[3]
                tensor[7] = 0.5 * tensor[4] - tensor[6] + tensor[5]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(x))).relu().mean((2, 3)))


@pytest.mark.parametrize("behind", ["bias", "norm", "none"])
@pytest.mark.parametrize("options", [{}, {"padding": 1, "stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}])
def test_a_channel_that_others_can_say_is_restored_exactly(behind: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = Redundant(behind, **options).double().eval()
    x = torch.randn(12, 3, 9, 9, dtype=torch.float64)
    graph = prunus.trace(model, x)
    plan = without(graph, "first", [1, 7])
    pruned = prunus.remove(model, graph, plan)
    made, report = reconstruct(model, pruned, graph, plan, x, ridge=1e-12)
    fresh = torch.randn(5, 3, 9, 9, dtype=torch.float64)
    assert difference(pruned, model, fresh) > 1e-3
    assert difference(made, model, fresh) < 1e-8
    (layer,) = report.layers
    constant = {"bias": ("second.bias",), "norm": ("norm.running_mean",), "none": ()}[behind]
    assert layer.changed == ("second.weight", *constant)
    assert ("neither a bias nor a BatchNorm" in layer.reason) == (behind == "none")
    assert layer.error_before > 1e-2 and layer.error_after < 1e-12
    assert difference(reconstruct(model, pruned, graph, plan, x)[0], model, fresh) < 1e-6, "so does the default"


@pytest.mark.parametrize("behind", ["bias", "norm", "none"])
def test_weights_and_constant_are_those_of_a_dense_solver(behind: str) -> None:
    """The whole way, against `unfold` and torch's own least squares."""
    torch.manual_seed(0)
    model = Redundant(behind, padding=1, stride=2).double().eval()
    if behind == "norm":
        model.norm.running_mean.uniform_(-1, 1)
    x = torch.randn(20, 3, 9, 9, dtype=torch.float64)
    graph = prunus.trace(model, x)
    plan = without(graph, "first", [0, 2, 4])
    pruned = prunus.remove(model, graph, plan)
    made, _ = reconstruct(model, pruned, graph, plan, [x[:13], x[13:]], ridge=0.0)
    with torch.no_grad():
        seen = F.unfold(pruned.first(x), 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
        wanted = model.second(model.first(x)).flatten(2).transpose(1, 2).flatten(0, 1)
    ones = torch.ones(len(seen), 0 if behind == "none" else 1, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat((seen, ones), 1), wanted).solution
    torch.testing.assert_close(made.second.weight.flatten(1), expected[:45].T, rtol=1e-8, atol=1e-8)
    if behind == "bias":
        torch.testing.assert_close(made.second.bias.detach(), expected[45], rtol=1e-8, atol=1e-8)
    if behind == "norm":
        mean = model.norm.running_mean - expected[45]
        torch.testing.assert_close(made.norm.running_mean, mean, rtol=1e-8, atol=1e-8)


def test_one_linear_layer_by_hand() -> None:
    """y = 2a + 3b on points where b = a² is gone: the best line through (0, 0), (1, 5), (2, 16) is 8a − 1."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1), nn.Linear(1, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.copy_(torch.tensor([[2.0, 3.0]]))
        model[1].bias.zero_()
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 4.0]], dtype=torch.float64)
    graph = prunus.trace(model, x)
    plan = without(graph, "0", [1])
    made, _ = reconstruct(model, prunus.remove(model, graph, plan), graph, plan, x, ridge=0.0)
    assert made[1].weight.item() == pytest.approx(8, abs=1e-9)
    assert made[1].bias.item() == pytest.approx(-1, abs=1e-9)


class Residual(nn.Module):
    """A stem whose channels go on beside a convolution, with a BatchNorm before the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.next = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(self.next(x))
        out = self.norm(self.conv(y.relu()))
        out += y
        return self.head(out.relu())


def test_what_the_shortcut_lost_is_made_good() -> None:
    """The input of a sum is off by what the stem lost, and linear in what the convolution sees: the sum is exact."""
    torch.manual_seed(0)
    model = Residual().double().eval()
    x = torch.randn(30, 3, 6, 6, dtype=torch.float64).abs()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.weight.uniform_(0.5, 2)
        model.stem.weight.abs_()
        model.stem.bias.fill_(9)  # all is positive: relu changes nothing
        model.next.weight[:, 0] += 0.1
    graph = prunus.trace(model, x)
    plan = without(graph, "next", [1])
    pruned = prunus.remove(model, graph, plan)
    made, report = reconstruct(model, pruned, graph, plan, x, ridge=0.0)
    assert [layer.name for layer in report.layers] == ["stem"], "only what lost inputs is refitted"
    assert difference(made, model, x) < difference(pruned, model, x)
    plan = without(graph, "stem", [2])
    whole = prunus.remove(model, graph, plan)
    spoilt = copy.deepcopy(whole)
    with torch.no_grad():
        spoilt.stem.weight.mul_(0.8)  # the shortcut has lost a fifth, as if layers before it had been pruned
    made, _ = reconstruct(model, spoilt, graph, plan, x, ridge=0.0)
    made.head, exact = nn.Identity(), copy.deepcopy(model)
    exact.head = nn.Identity()
    with torch.no_grad():
        wanted = exact(x)[:, [0, 1, 3, 4, 5]]
        found = made(x)
        plain = model.norm(model.conv(model.stem(model.next(x)).relu()))[:, [0, 1, 3, 4, 5]] + spoilt.stem(
            model.next(x)
        )
    assert (found - wanted).square().mean() < 0.1 * (plain.relu() - wanted).square().mean()


def smooth(name: str, side: int) -> nn.Module:
    """Build a zoo network whose filters are smooth, and statistics as they are after training: neighbours agree."""
    torch.manual_seed(0)
    model = prunus.build_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4 and parameter.shape[1] > 1:
                basis = torch.randn(parameter.shape[0], max(1, parameter.shape[0] // 4))
                mixed = basis @ torch.randn(basis.shape[1], parameter[0].numel())
                parameter.copy_((mixed * parameter.std() / mixed.std()).view_as(parameter))
    return prunus.recovery.recalibrate(model, images(64, 5, side)).eval()


def images(count: int, seed: int, side: int = 16) -> Tensor:
    """Draw images in which neighbouring pixels agree."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(count, 3, side // 4, side // 4, generator=generator), side, mode="bicubic")


@pytest.mark.parametrize(
    ("name", "count", "side", "ratio", "better"),
    [
        ("resnet20", 96, 16, 0.25, 0.3),
        ("mobilenetv2", 48, 12, 0.25, 0.9),
        ("shufflenetv2", 48, 12, 0.25, 0.9),
        pytest.param("densenet40", 16, 8, 0.5, 0.9, marks=pytest.mark.slow),
        pytest.param("googlenet", 8, 8, 0.5, 0.9, marks=pytest.mark.slow),
    ],
)
def test_networks_of_the_zoo_come_nearer_to_the_original(
    name: str, count: int, side: int, ratio: float, better: float
) -> None:
    model, held_out = smooth(name, side), images(32, 9, side)
    graph = prunus.trace(model, held_out[:2])
    scores = prunus.score(model, graph, "random")
    plan = prunus.allocate(graph, scores, prunus.Budget(pruning_ratio=ratio), scope="local")
    pruned = prunus.remove(model, graph, plan)
    before = [copy.deepcopy(network) for network in (model, pruned)]
    made, report = reconstruct(model, pruned, graph, plan, images(count, 7, side), max_positions=2000)
    assert same_tensors(model, before[0]) and same_tensors(pruned, before[1])
    assert len(report.layers) >= 15 and len(report.changed) >= 0.7 * len(report.layers)
    with torch.no_grad():
        wanted = model(held_out)
        errors = [float((network.eval()(held_out) - wanted).square().mean()) for network in (pruned, made)]
    assert errors[1] < better * errors[0], errors


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "shufflenetv2", "densenet40", "googlenet"])
def test_layers_are_compared_filter_by_filter(name: str) -> None:
    """Where removed channels meet zeros, nothing is lost: each layer gives what the original's kept filters give.

    A filter, a position or a shortcut that is matched with another, also where channels change places, is an error.
    """
    torch.manual_seed(0)
    model = randomise(prunus.build_model(name))
    x = images(8, 3, 8).double()
    graph = prunus.trace(model, x[:2].float())
    plan = half_plan(graph)
    original = silence(model, graph, plan).double().eval()
    pruned = prunus.remove(original, graph, plan)
    made, report = reconstruct(original, pruned, graph, plan, x, ridge=1e9, max_positions=64)
    assert len(report.changed) == len(report.layers) >= 15
    assert max(layer.error_before for layer in report.layers) < 1e-12
    assert difference(made, pruned, x) < 1e-8
    compensated, _ = compensate(original, pruned, graph, plan, x)
    assert difference(compensated, pruned, x) < 1e-12


def halved_resnet8() -> tuple[nn.Module, Tensor, prunus.ChannelGraph, prunus.PruningPlan, nn.Module]:
    """A network, images, its graph, a plan that keeps half, and what is then left."""
    torch.manual_seed(0)
    model, x = prunus.build_model("resnet8").eval(), images(24, 0)
    graph = prunus.trace(model, x[:2])
    plan = half_plan(graph)
    return model, x, graph, plan, prunus.remove(model, graph, plan)


def test_the_draw_is_seeded_and_bounded_and_progress_is_told() -> None:
    model, x, graph, plan, pruned = halved_resnet8()
    steps: list[tuple[int, int]] = []
    state = torch.get_rng_state()
    first, report = reconstruct(
        model, pruned, graph, plan, x, max_positions=300, progress=lambda done, of: steps.append((done, of))
    )
    assert torch.equal(torch.get_rng_state(), state)
    layers = len(report.layers)
    assert steps == [(done, layers) for done in range(layers + 1)]
    again, _ = reconstruct(model, pruned, graph, plan, x, max_positions=300)
    other, _ = reconstruct(model, pruned, graph, plan, x, max_positions=300, seed=1)
    assert same_tensors(first, again) and not same_tensors(first, other)
    changed = {name for layer in report.changed for name in layer.changed}
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, pruned.state_dict()[name]) == (name not in changed), name


class Stems(TorchDispatchMode):
    """Writes down how many images the first layer of the original gets, each time that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and args[1].shape == (16, 3, 3, 3):
            self.sizes.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_the_original_runs_once_for_all_layers_that_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, graph, plan, pruned = halved_resnet8()
    assert model.get_parameter("conv1.weight").shape[0] == 16 > pruned.get_parameter("conv1.weight").shape[0]
    batches = [x[:16], x[16:]]

    def made(remembered: int, kept: int) -> tuple[nn.Module, int, list[int]]:
        monkeypatch.setattr(reconstruction, "_REMEMBERED", remembered)
        monkeypatch.setattr(reconstruction, "_KEPT", kept)
        with Stems() as stems:
            network, report = reconstruct(model, pruned, graph, plan, batches, max_positions=300)
        return network, len(report.layers), stems.sizes

    first, layers, sizes = made(2**27, 2**28)
    assert sizes == [1, 16, 8], "one example to find the layers, and the batches"
    again, _, sizes = made(0, 2**28)
    assert sizes == [1, 16, 16, 8, 8], "once more to write the operations down; then from layer to layer"
    assert same_tensors(first, again)
    for room, most in ((0, layers), (100_000, layers - 1)):
        again, _, sizes = made(room, 0)
        runs = (len(sizes) - 5) // 2 + 1
        assert sizes == [1, 16, 16, 8, 8, *[16, 8] * (runs - 1)]
        assert 1 < runs <= most and (room or runs == most)
        assert same_tensors(first, again)


@pytest.mark.parametrize(("options", "message"), [({"ridge": -1.0}, "ridge is -1.0"), ({"max_positions": 0}, "is 0")])
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    model, x = Redundant(), torch.randn(2, 3, 9, 9)
    graph = prunus.trace(model, x)
    plan = without(graph, "first", [1])
    with pytest.raises(ConfigError, match=message):
        reconstruct(model, prunus.remove(model, graph, plan), graph, plan, x, **options)  # type: ignore[arg-type]


def test_too_few_images_do_no_harm() -> None:
    """Four images say nothing of hundreds of inputs: plain least squares ruins what the default leaves or mends."""
    model, held_out = smooth("shufflenetv2", 12), images(32, 9, 12)
    graph = prunus.trace(model, held_out[:2])
    scores = prunus.score(model, graph, "random")
    plan = prunus.allocate(graph, scores, prunus.Budget(pruning_ratio=0.25), scope="local")
    pruned = prunus.remove(model, graph, plan).eval()
    few = images(5, 7, 12)
    made, report = reconstruct(model, pruned, graph, plan, few)
    ruined, _ = reconstruct(model, pruned, graph, plan, few, ridge=1e-6)
    assert any("images that it has not seen" in layer.reason for layer in report.left)
    before, after, plain = (difference(network, model, held_out) for network in (pruned, made, ruined))
    assert after < 1.2 * before < plain, (before, after, plain)


def test_a_compensated_network_is_refitted_like_one_that_is_not() -> None:
    """The constant that a running mean holds already does not count twice."""
    torch.manual_seed(0)
    model = randomise(prunus.build_model("resnet8")).eval()
    images = torch.randn(64, 3, 8, 8)
    graph = prunus.trace(model, images[:1])
    plan = half_plan(graph)
    small = prunus.remove(model, graph, plan)
    compensated, _ = compensate(model, small, graph, plan, images)
    assert not same_tensors(compensated, small)
    refitted, _ = reconstruct(model, small, graph, plan, images, ridge=0.1)
    again, _ = reconstruct(model, compensated, graph, plan, images, ridge=0.1)
    for name, tensor in refitted.state_dict().items():
        assert torch.allclose(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5), name
