"""Networks by name: the zoo's, timm's, torchvision's and the user's own. Wrong ones are told, nothing is downloaded."""

from __future__ import annotations

import importlib
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.models import Network, find_network, load_network
from prunus.models.sources import BATCH

OWN = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.rand(5, 1, 9, 9)

def two():
    return nn.Bilinear(2, 3, 4), (torch.rand(2, 2), torch.rand(2, 3))

def bare():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Flatten(), nn.Linear(4 * 24 * 24, 2))

def nothing_fits():
    return nn.Conv2d(7, 4, 3)

def text():
    return "a network"

def breaks():
    raise ZeroDivisionError("no\\nnetwork")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, its name new for each test."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


def sizes(network: Network) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in network.inputs]


def test_a_network_of_the_zoo() -> None:
    network = load_network("resnet8")
    assert sizes(network) == [(BATCH, 3, 32, 32)]
    assert network.model(*network.inputs).shape == (BATCH, 10)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("timm:test_resnet", (BATCH, 3, 64, 64)),  # takes any size: the smallest that is tried
        ("timm:levit_128s", (BATCH, 3, 224, 224)),  # takes its own only
        ("torchvision:squeezenet1_1", (BATCH, 3, 64, 64)),
        ("torchvision:r3d_18", (BATCH, 3, 8, 64, 64)),
    ],
)
def test_a_library_network_with_inputs_that_it_takes(spec: str, shape: tuple[int, ...]) -> None:
    network = load_network(spec)
    assert sizes(network) == [shape]
    assert isinstance(network.model(*network.inputs), Tensor)


@pytest.mark.parametrize("spec", ["torchvision:googlenet", "torchvision:lraspp_mobilenet_v3_large"])
def test_nothing_is_downloaded(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    load_network(spec)


def test_heads_that_only_training_runs_are_on() -> None:
    network = load_network("torchvision:googlenet")
    assert len(network.model.train()(*network.inputs)) == 3
    assert any(
        name.startswith("aux_classifier")
        for name, _ in load_network("torchvision:fcn_resnet50").model.named_parameters()
    )


def test_of_a_detector_the_backbone_is_taken() -> None:
    network = load_network("torchvision:fasterrcnn_mobilenet_v3_large_fpn")
    assert set(network.model(*network.inputs)) == {"0", "1", "pool"}


def test_a_factory_returns_inputs_or_leaves_them_to_be_found(own: str) -> None:
    assert sizes(load_network(f"{own}:build")) == [(5, 1, 9, 9)]
    assert sizes(load_network(f"{own}:two")) == [(2, 2), (2, 3)]
    assert sizes(load_network(f"{own}:bare")) == [(BATCH, 3, 96, 96)]
    assert sizes(load_network(f"{own}.py:build")) == [(5, 1, 9, 9)]
    assert str(Path.cwd()) not in sys.path


def test_loading_leaves_the_network_as_it_was_made(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    find_network(f"{own}:build")  # imports it
    monkeypatch.setattr(sys.modules[own], "build", lambda: (Noisy(), torch.rand(2, 3, 8, 8)))
    torch.manual_seed(3)
    network = load_network(f"{own}:build")
    state = torch.get_rng_state()
    torch.manual_seed(3)
    Noisy(), torch.rand(2, 3, 8, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.model.training and not network.model.layers.training
    buffers = dict(network.model.named_buffers())
    assert not buffers["layers.1.running_mean"].any() and int(buffers["layers.1.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet21", r"no model named 'resnet21'\. Did you mean 'resnet\d+'\? .*timm:NAME.*package\.module:factory"),
        ("timm:resnet18s", r"timm [\d.]+ has no model named 'resnet18s'\. Did you mean 'resnet18"),
        ("torchvision:resnet19", r"torchvision has no model named 'resnet19'\. Did you mean 'resnet1"),
        ("timm:", r"has no model named ''\.$"),
        ("no_such_module_x:build", "cannot import 'no_such_module_x': ModuleNotFoundError: No module named"),
        ("no/such/file.py:build", r"cannot import 'no/such/file\.py': FileNotFoundError: there is no file"),
        ("{own}:buidl", r"own_\S* has no function 'buidl'\. Did you mean 'build'\?"),
        ("{own}:number", r"has no function 'number'"),
    ],
)
def test_what_cannot_be_found_is_told_with_what_is_near(own: str, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_network(spec.format(own=own))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "returns str, not a torch.nn.Module or a module and its example inputs"),
        ("breaks", r"breaks\(\) raised ZeroDivisionError: no$"),
        ("nothing_fits", r"runs on none of the inputs that were tried \(.*2×3×384×384: RuntimeError.*return model, \("),
    ],
)
def test_what_cannot_be_built_is_told(own: str, name: str, message: str) -> None:
    source = find_network(f"{own}:{name}")
    with pytest.raises(ModelError, match=message):
        source.load()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed_is_told_with_the_command(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_network("timm:resnet18")  # both are there before
    real = importlib.import_module

    def missing(name: str) -> object:
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModelError, match=rf"needs {library}, which is not installed: pip install 'prunus\[timm\]'"):
        find_network(f"{library}:resnet18")


def test_a_library_that_does_not_load_is_told_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ImportError("libfoo.so: cannot open")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModelError, match=r"needs torchvision, which cannot be imported: ImportError: libfoo\.so"):
        find_network("torchvision:resnet18")
