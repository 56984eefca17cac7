"""Branches that were dropped are not in the files: their operations are gone, and the numbers are the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.deploy.exported import randomise
from torch import Tensor, nn

import prunus
from prunus.branches import drop_branches
from prunus.deploy import FileInfo, quantize
from prunus.deploy.capturing import capture
from prunus.deploy.comparing import random_samples
from prunus.deploy.folding import count_operations
from prunus.models import build_model

CONV = "aten.conv2d.default"


class Block(nn.Module):
    """A residual block as people write them: what it adds to is the first or the second part, kept or written into."""

    def __init__(self, form: str, activation: nn.Module) -> None:
        super().__init__()
        self.form = form
        self.branch = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            activation,
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.after = activation if form == "activated" else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.form == "in place":
            y += x
            return self.after(y)
        if self.form == "read later":  # what is added to is needed once more
            y += x
            return self.after(y) - 0.5 * x
        if self.form == "activated":
            return x + self.after(y)
        return x + 0.5 * y


class Network(nn.Module):
    def __init__(self, form: str, activation: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.first, self.second = Block(form, activation), Block(form, activation)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(self.stem(x))).mean((2, 3)))


INPUTS = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def rectifier() -> nn.Module:
    return nn.ReLU(inplace=True)


@pytest.mark.parametrize(
    ("form", "activation", "fold"),
    [
        ("in place", rectifier, True),
        ("in place", rectifier, False),
        ("read later", rectifier, True),
        ("scaled", nn.SiLU, True),
        *(("activated", kind, True) for kind in (rectifier, nn.ReLU6, nn.SiLU, nn.Hardswish)),
    ],
)
def test_a_silent_branch_leaves_no_operation_and_changes_no_number(
    form: str, activation: Callable[[], nn.Module], fold: bool
) -> None:
    torch.manual_seed(0)
    model = randomise(Network(form, activation())).eval()
    silent, _ = drop_branches(model, prunus.trace(model, INPUTS), ["second.branch.0"])
    with torch.no_grad():
        wanted = silent(INPUTS)
    whole, ours = (capture(network, (3, 10, 10), fold=fold) for network in (model, silent))
    assert count_operations(whole.module)[CONV] == 5
    found = count_operations(ours.module)
    assert found[CONV] == 3
    assert found["aten.batch_norm.default"] == (0 if fold else 3)
    assert torch.allclose(ours.module(INPUTS), wanted, atol=1e-5)
    assert {name for name, _ in ours.module.named_parameters()} >= {
        name for fold_ in ours.folds for name in (fold_.new_weight, fold_.new_bias)
    }
    assert not any("second.branch" in name for name in ours.module.state_dict())


def test_what_is_not_silent_stays() -> None:
    torch.manual_seed(0)
    model = randomise(Network("in place", nn.ReLU())).eval()
    with torch.no_grad():
        model.second.branch[3].weight.zero_()  # but its BatchNorm still adds something
    captured = capture(model, (3, 10, 10))
    assert count_operations(captured.module)[CONV] == 5
    assert torch.allclose(captured.module(INPUTS), model(INPUTS), atol=1e-5)


class Written(nn.Module):
    """What a silent layer gives is written into before it is added: all of it, or a part."""

    def __init__(self, part: bool) -> None:
        super().__init__()
        self.part, self.conv, self.fc = part, nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 5)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        (y[:, :2] if self.part else y).add_(1.0)
        return self.fc((x + y).mean((2, 3)))


@pytest.mark.parametrize("part", [False, True])
def test_a_zero_that_is_written_into_is_none(part: bool) -> None:
    torch.manual_seed(0)
    model = Written(part).eval()
    with torch.no_grad():
        assert torch.allclose(capture(model, (3, 10, 10)).module(INPUTS), model(INPUTS), atol=1e-5)


def test_files_of_a_network_without_branches_are_smaller_and_right(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ncnn")
    torch.manual_seed(0)
    model = randomise(build_model("resnet20")).eval()
    images = torch.randn(8, 3, 32, 32)
    result = prunus.prune(
        model, images[:2], budget=prunus.Budget(macs=0.4), round_to=8, drop_branches=4, calibration=images
    )
    formats = ["onnx", "pt2", "ncnn"]
    written = prunus.export(result.model, tmp_path, formats, input_shape=(3, 32, 32))
    for file in written:
        assert file.comparison.max_relative_error < 1e-4, file.format
    import onnx

    kinds = [node.op_type for node in onnx.load(str(written[0].files[0])).graph.node]
    assert kinds.count("Conv") == 21 - 2 * 4  # with both projections
    assert kinds.count("Add") == 9 - 4


def test_a_simulation_of_8_bits_knows_nothing_of_them() -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = randomise(Network("in place", nn.ReLU())).eval()
    silent, _ = drop_branches(model, prunus.trace(model, INPUTS), ["second.branch.0"])
    quantized = quantize(silent, FileInfo(format="", input_shape=(3, 10, 10)), random_samples((3, 10, 10), 64))
    simulation = quantized.simulation(copy.deepcopy(silent)).train()
    simulation(INPUTS).square().sum().backward()
    assert simulation.network.first.branch[0].weight.grad is not None
    assert simulation.network.second.branch[0].weight.grad is None
    with torch.no_grad():
        found = torch.from_numpy(quantized.open()(INPUTS.numpy()))
        assert (simulation(INPUTS) - found).abs().max() < 0.2 * found.abs().max()
