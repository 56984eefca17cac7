"""Recalibration: averages computed by hand, and nothing but BatchNorm's statistics changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.recovery import recalibrate


class Small(nn.Module):
    """A convolution, two BatchNorms one behind the other, and dropout."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.first, self.second = nn.BatchNorm2d(4, **options), nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.first(self.conv(x)).relu()))


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4 + number, 3, 6, 6, generator=generator) * (number + 1) for number in range(count)]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)


def normalised(x: Tensor) -> Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def same_state(a: nn.Module, b: nn.Module, skip: tuple[str, ...] = ()) -> bool:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one if not name.endswith(skip or ("\0",)))


def test_the_statistics_are_the_average_over_the_batches() -> None:
    torch.manual_seed(0)
    model = Small().double()
    data = [batch.double() for batch in batches()]
    made = recalibrate(model, data)
    for norm, inputs in (
        (made.first, [model.conv(x) for x in data]),
        (made.second, [normalised(model.conv(x)).relu() for x in data]),  # dropout is off
    ):
        means, variances = zip(*(statistics(x.detach()) for x in inputs), strict=True)
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-12, atol=1e-12)
    again = recalibrate(made, data)
    assert same_state(again, made), "what was there before does not count"


def test_a_tensor_is_one_batch() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.cat(batches())
    mean, var = statistics(model.conv(x).detach())
    made = recalibrate(model, x)
    torch.testing.assert_close(made.first.running_mean, mean)
    torch.testing.assert_close(made.first.running_var, var)


def test_nothing_else_changes() -> None:
    torch.manual_seed(0)
    model = Small()
    model.drop.eval()
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    made = recalibrate(model, batches())
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(model, before), "the argument is as it was"
    assert same_state(made, model, ("running_mean", "running_var"))
    assert not torch.equal(made.first.running_var, model.first.running_var)
    assert [module.training for module in made.modules()] == modes
    assert [module.training for module in model.modules()] == modes
    assert made.first.momentum == model.first.momentum == 0.1
    made(batches()[0])
    assert int(made.first.num_batches_tracked) == 1, "training goes on counting as before"


def test_frozen_norms_and_those_without_statistics_stay() -> None:
    torch.manual_seed(0)
    model = Small()
    made = recalibrate(model, batches(), frozen=["second"])
    assert torch.equal(made.second.running_mean, model.second.running_mean)
    assert not torch.equal(made.first.running_mean, model.first.running_mean)
    loose = Small(track_running_stats=False)
    made = recalibrate(loose, batches())
    assert made.first.running_mean is None
    assert not torch.equal(made.second.running_mean, loose.second.running_mean)
    with pytest.raises(ConfigError, match="frozen names 'third', and this Small has no module of that name"):
        recalibrate(model, batches(), frozen="third")


def test_a_norm_that_does_not_run_keeps_what_it_has() -> None:
    model = Small()
    model.spare = nn.BatchNorm2d(5)
    model.spare.running_mean.fill_(7)
    assert torch.equal(recalibrate(model, batches()).spare.running_mean, model.spare.running_mean)


def test_a_network_without_batch_norm_comes_back_equal() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Dropout())
    made = recalibrate(model, batches())
    assert made is not model and same_state(made, model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (iter(batches()), "can be gone through only once"),
        ((x for x in batches()), "a generator, which can be gone through only once"),
        ([], "there is no calibration batch"),
        (3, "batches is of type int"),
        ([(batches()[0], torch.zeros(4))], "images alone"),
        ([torch.zeros(0, 3, 6, 6)], "images alone"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recalibrate(Small(), given)  # type: ignore[arg-type]


def test_a_batch_of_one_value_a_channel_is_refused() -> None:
    with pytest.raises(ConfigError, match="batches of at least two examples"):
        recalibrate(Small(), torch.randn(1, 3, 3, 3))


def test_a_zoo_network_is_recalibrated() -> None:
    torch.manual_seed(0)
    model = prunus.build_model("resnet8").eval()
    x = torch.randn(16, 3, 16, 16)
    made = recalibrate(model, x)
    with torch.no_grad():
        torch.testing.assert_close(made.bn1(made.conv1(x)).mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
        assert model.bn1(model.conv1(x)).std() != pytest.approx(1, abs=1e-2)
        assert made.bn1(made.conv1(x)).std() == pytest.approx(1, abs=1e-2)
