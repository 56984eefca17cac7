"""What the networks do with images, and how their weights start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunus.models import MODELS, build_model
from prunus.models.resnet import ZeroPadShortcut
from prunus.models.shufflenet import shuffle

SMALLEST = {"vgg16_bn": 16, "vgg19_bn": 16, "densenet40": 4, "squeezenet": 8}  # pixels a side; 1 elsewhere


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("num_classes", "in_channels"), [(10, 1), (100, 3)])
def test_logits_have_one_row_an_image_and_one_column_a_class(name: str, num_classes: int, in_channels: int) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=num_classes, in_channels=in_channels)
        for side in (SMALLEST.get(name, 1), 32, 45):
            assert model(torch.empty(2, in_channels, side, side)).shape == (2, num_classes)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_trained(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name)
    logits = model(torch.randn(4, 3, 16, 16))
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert torch.isfinite(logits).all()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet20", "mobilenetv2", "squeezenet"])
def test_the_seed_decides_the_weights(name: str) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_model(name).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    kernels = [key for key, tensor in first.items() if tensor.ndim > 1]
    assert not any(torch.equal(first[key], other[key]) for key in kernels)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "googlenet"])
def test_convolutions_start_with_the_variance_of_he(name: str) -> None:
    torch.manual_seed(0)
    for module in build_model(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            expected = math.sqrt(2 / module.weight[0].numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert module.bias is None or not module.bias.any()


def test_evaluation_does_not_depend_on_the_other_images() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    for name in ("resnet8", "shufflenetv2", "densenet40"):
        model = build_model(name).double().eval()
        together = model(images)
        torch.testing.assert_close(together[1:2], model(images[1:2]), rtol=1e-10, atol=1e-10)


def test_the_zero_padding_shortcut_subsamples_and_centres_the_channels() -> None:
    images = torch.rand(2, 16, 5, 5) + 1
    widened = ZeroPadShortcut(16, 32, stride=2)(images)
    assert widened.shape == (2, 32, 3, 3)
    assert torch.equal(widened[:, 8:24], images[:, :, ::2, ::2])
    assert not widened[:, :8].any()
    assert not widened[:, 24:].any()


def test_the_zero_padding_shortcut_obeys_its_attribute() -> None:
    shortcut = ZeroPadShortcut(16, 32, stride=1)
    shortcut.padding = (3, 4)
    assert shortcut(torch.ones(1, 10, 2, 2))[0, :, 0, 0].tolist() == [0] * 3 + [1] * 10 + [0] * 4


def test_shuffle_interleaves_the_halves() -> None:
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]
