"""Model files: what is saved comes back, bit for bit; what is hostile is refused before anything is built."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.graph.pieces import PIECES
from tests.graph.test_pieces import CHANNELS, Between
from torch import Tensor, nn

import prunus
from prunus.deploy import header_bytes, load, read_header, save
from prunus.errors import FileFormatError, ModelError, SurgeryError
from prunus.files import load_tensors, save_tensors
from prunus.graph.trace import trace
from prunus.models import build_model
from prunus.plan import PruningPlan, plan_from_keep
from prunus.surgery import apply_attributes, module_attributes, remove

IDENTITY: dict[str, Any] = {
    "model_name": "resnet8_pad",
    "num_classes": 5,
    "in_channels": 1,
    "input_shape": (1, 8, 8),
    "classes": ("a", "b", "c", "d", "é"),
    "mean": (0.3,),
    "std": (0.2,),
}


class Block(nn.Module):
    """A network of a user's own, with a size kept in `forward`'s reach and a buffer that is in no file."""

    position: Tensor

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)
        self.register_buffer("position", torch.full((1,), 3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depthwise(self.conv(x)))) * self.position
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.3))
    return model


def pruned(model: nn.Module, example: Tensor, seed: int = 0) -> tuple[nn.Module, PruningPlan]:
    graph = trace(model, example)
    rng = np.random.default_rng(seed)
    keep = graph.keep_all()
    for group in graph.groups:
        flags = rng.random(group.size) < 0.5
        flags[rng.integers(group.size)] = True
        keep[group.channels] = flags
    plan = plan_from_keep(graph, keep)
    return remove(model, graph, plan), plan


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, plan = pruned(randomise(build_model("resnet8_pad", 5, 1)), torch.rand(2, 1, 8, 8))
    save(model, tmp_path / "m.safetensors", plan=plan, extra={"note": "ü"}, **IDENTITY)
    return tmp_path / "m.safetensors"


def test_a_pruned_zoo_network_comes_back_bit_for_bit_without_its_code(tmp_path: Path) -> None:
    example = torch.rand(2, 1, 8, 8)
    model, plan = pruned(randomise(build_model("resnet8_pad", 5, 1)), example)
    size = save(model, tmp_path / "m.safetensors", plan=plan, **IDENTITY)
    assert size == (tmp_path / "m.safetensors").stat().st_size
    torch.manual_seed(3)
    before = torch.get_rng_state()
    back = load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before), "loading moved the random state"
    assert not back.training
    assert torch.equal(back(example), model.eval()(example))
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert trace(back, example).channel_count == trace(model, example).channel_count  # its sizes agree: it prunes on


def test_the_header_says_what_was_pruned(saved: Path) -> None:
    model = randomise(build_model("resnet8_pad", 5, 1))
    _, plan = pruned(model, torch.rand(2, 1, 8, 8))
    header = read_header(saved)
    assert header.kept_channels() == {group.name: group.keep for group in plan.groups}
    assert (header.classes, header.input_shape, header.extra) == (IDENTITY["classes"], (1, 8, 8), {"note": "ü"})


def test_a_network_of_ones_own_comes_back_from_its_factory(tmp_path: Path) -> None:
    example = torch.rand(2, 3, 8, 8)
    model, plan = pruned(randomise(Block()), example)
    save(model, tmp_path / "m.safetensors", plan=plan)
    back = load(tmp_path / "m.safetensors", factory=Block)
    assert torch.equal(back(example), model.eval()(example))
    with pytest.raises(ModelError, match="factory=lambda"):
        load(tmp_path / "m.safetensors")
    with pytest.raises(FileFormatError, match=r"axes|lacks|attributes"):
        load(tmp_path / "m.safetensors", factory=lambda: nn.Sequential(nn.Linear(3, 4)))


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    def factory() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    save(factory(), tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors", factory=factory)
    assert back[0].weight is back[2].weight  # type: ignore[index]


@pytest.mark.parametrize("name", ["resnet8", "resnet20_pad", "squeezenet"])
def test_the_header_of_the_whole_network_bounds_that_of_every_plan(name: str, tmp_path: Path) -> None:
    example = torch.rand(2, 3, 32, 32)
    model = build_model(name)
    graph = trace(model, example)
    identity = {"model_name": name, "num_classes": 10, "in_channels": 3, "input_shape": (3, 32, 32)}
    reserve = header_bytes(model, graph, **identity)
    small, plan = pruned(model, example)
    size = save(small, tmp_path / "m.safetensors", plan=plan, **identity)
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in small.state_dict().values())
    assert tensors < size <= tensors + reserve
    assert tensors + reserve - size < 1000, "the reserve wastes the user's budget"


def test_saving_a_zoo_network_needs_what_its_builder_was_given(tmp_path: Path) -> None:
    model = build_model("resnet8")
    with pytest.raises(ModelError, match="num_classes and in_channels"):
        save(model, tmp_path / "m.safetensors", model_name="resnet8")
    with pytest.raises(ModelError, match="Did you mean 'resnet8'"):
        save(model, tmp_path / "m.safetensors", model_name="resnet8x", num_classes=10, in_channels=3)


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors, metadata = load_tensors(path)
    header = json.loads(metadata["prunus"])
    change(header)
    save_tensors(path, tensors, {"prunus": json.dumps(header)})


HOSTILE_HEADERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (lambda h: h.update(format_version=2), "format version 2"),
    "unknown key": (lambda h: h.update(hook="os.system"), "hook"),
    "missing key": (lambda h: h.pop("attributes"), "attributes"),
    "unknown model": (lambda h: h.update(model="resnet9"), "Did you mean"),
    "classes by the milliard": (lambda h: h.update(num_classes=10**12), "num_classes"),
    "more classes than it has": (lambda h: h.update(num_classes=10**6), "for 5 classes"),
    "no classes": (lambda h: h.update(num_classes=None), "without num_classes"),
    "module it lacks": (lambda h: h["attributes"].update({"conv9": {"groups": 2}}), "conv9"),
    "attribute that is no size": (lambda h: h["attributes"]["conv1"].update(forward=1), "conv1.forward"),
    "private attribute": (lambda h: h["attributes"]["conv1"].update(__class__=1), "__class__"),
    "huge size": (lambda h: h["attributes"]["conv1"].update(groups=10**30), "conv1.groups"),
    "size that is text": (lambda h: h["attributes"]["conv1"].update(groups="import os"), "conv1.groups"),
    "size that does not fit": (lambda h: h["attributes"]["conv1"].update(groups=7), "do not fit"),
    "negative size": (lambda h: h["attributes"]["conv1"].update(groups=-1), "attributes"),
    "longer tuple": (lambda h: h["attributes"]["layer2.0.shortcut"].update(padding=[1, 2, 3]), "padding"),
    "wrong tuple": (lambda h: h["attributes"]["layer2.0.shortcut"].update(padding=[50, 0]), "do not fit"),
    "plan of letters": (lambda h: h.update(plan={"conv1": "11x"}), "plan.conv1"),
    "mean that is no number": (lambda h: h.update(mean=["NaN"]), "mean"),
    "image by the terabyte": (lambda h: h.update(input_shape=[1, 10**9, 10**9]), "input_shape"),
    "image of other channels": (lambda h: h.update(input_shape=[4, 8, 8]), "do not fit"),
    "not an object": (lambda h: h.clear(), "header"),
}


@pytest.mark.parametrize("case", HOSTILE_HEADERS)
def test_a_hostile_header_is_refused(case: str, saved: Path) -> None:
    change, message = HOSTILE_HEADERS[case]
    change_header(saved, change)
    with pytest.raises(FileFormatError, match=message):
        load(saved)


HOSTILE_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("fc.bias"), "lacks fc.bias"),
    "extra": (lambda t: t.update(evil=torch.zeros(1)), "has evil"),
    "narrower": (lambda t: t.update({"bn1.weight": t["bn1.weight"][:-1].clone()}), "do not fit"),
    "more classes": (lambda t: t.update({"fc.weight": torch.zeros(9, t["fc.weight"].shape[1])}), "do not fit"),
    "one axis less": (lambda t: t.update({"conv1.weight": t["conv1.weight"][0].clone()}), "3 axes"),
    "whole numbers": (lambda t: t.update({"fc.bias": t["fc.bias"].long()}), "int64"),
    "empty": (lambda t: t.update({"conv1.weight": t["conv1.weight"][:0].clone()}), "do not fit"),
    "mixed precision": (lambda t: t.update({"fc.bias": t["fc.bias"].double()}), "mixes"),
}


@pytest.mark.parametrize("case", HOSTILE_TENSORS)
def test_tensors_that_do_not_fit_are_refused(case: str, saved: Path) -> None:
    change, message = HOSTILE_TENSORS[case]
    tensors, metadata = load_tensors(saved)
    change(tensors)
    save_tensors(saved, tensors, metadata)
    with pytest.raises(FileFormatError, match=message):
        load(saved)


def test_a_file_that_is_cut_short_or_none_of_ours_is_refused(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for end in (0, 7, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:end])
        with pytest.raises(FileFormatError, match=r"m\.safetensors"):
            load(saved)
    saved.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FileFormatError, match="damaged"):
        load(saved)
    save_tensors(saved, {"a": torch.zeros(2)}, {})
    with pytest.raises(FileFormatError, match="no Prunus header"):
        load(saved)
    save_tensors(saved, {"a": torch.zeros(2)}, {"prunus": "{not json"})
    with pytest.raises(FileFormatError, match="broken header"):
        load(saved)
    with pytest.raises(FileFormatError, match="no such file"):
        load(tmp_path / "none.safetensors")


def between(name: str) -> nn.Module:
    return randomise(Between(PIECES[name], CHANNELS[name]))


def halved(model: nn.Module, example: Tensor) -> prunus.PruneResult:
    return prunus.prune(model, example, pruning_ratio=0.5, criterion="l1_norm", scope="local", min_channels=1)


@pytest.mark.parametrize("name", PIECES)
def test_a_pruned_piece_comes_back_from_the_class_that_made_it(name: str, tmp_path: Path) -> None:
    """Also where its modules store sizes: as a number, in a tuple, a list or a dict, in modules of torch's."""
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    result = halved(between(name), example)
    save(result.model, tmp_path / "m.safetensors", plan=result.plan)
    back = load(tmp_path / "m.safetensors", factory=lambda: between(name))
    with torch.no_grad():
        assert torch.equal(back(example), result.model.eval()(example))
    assert module_attributes(back) == module_attributes(result.model)


class Stores(nn.Module):
    """Two halves of a width, whose numbers are kept in the container that it is given; forward notes shapes."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.sizes, self.limit = sizes, -1
        self.seen: Any = None
        self.first, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen, self.side = tuple(x.shape), x.shape[-1]
        a, b = self.sizes.values() if isinstance(self.sizes, dict) else self.sizes
        x = torch.tanh(self.first(x))
        return self.last(torch.cat([torch.sigmoid(x[:, :a]), x.split([a, b], 1)[1]], 1)).mean((2, 3))


CONTAINERS = {
    "tuple": lambda: (4, 8),
    "list": lambda: [4, 8],
    "dict": lambda: {"a": 4, "b": 8},
    "dict of numbers": lambda: {0: 4, 1: 8},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_sizes_come_back_in_the_container_that_held_them(kind: str, tmp_path: Path) -> None:
    example = torch.randn(2, 3, 8, 8)
    small = halved(Stores(CONTAINERS[kind]()), example).model.eval()
    before = small(example)  # forward notes shapes that a new network has not seen
    save(small, tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors", factory=lambda: Stores(CONTAINERS[kind]()))
    assert back.sizes == small.sizes != CONTAINERS[kind]()
    assert type(back.sizes) is type(small.sizes)
    assert (back.limit, back.seen) == (-1, None)
    assert torch.equal(back(example), before)


def whole_norms() -> nn.Module:
    """Modules of torch's that keep sizes without a tensor that shows them."""
    return nn.ModuleDict(
        {
            "layer": nn.LayerNorm(8, elementwise_affine=False),
            "rms": nn.RMSNorm(8, elementwise_affine=False),
            "group": nn.GroupNorm(8, 8, affine=False),
            "instance": nn.InstanceNorm2d(8),
            "batch": nn.BatchNorm2d(8, affine=False, track_running_stats=False),
            "unflatten": nn.Unflatten(1, (8, 2)),
            "shuffle": nn.ChannelShuffle(8),
            "pad": nn.ConstantPad3d((0, 0, 0, 0, 8, 8), 0.0),
            "reflect": nn.ReflectionPad3d((0, 0, 0, 0, 8, 8)),
            "prelu": nn.PReLU(8),
        }
    )


def test_the_sizes_of_torchs_own_modules_travel() -> None:
    halves = {
        "layer": {"normalized_shape": [4]},
        "rms": {"normalized_shape": [4]},
        "group": {"num_groups": 4, "num_channels": 4},
        "instance": {"num_features": 4},
        "batch": {"num_features": 4},
        "unflatten": {"unflattened_size": [4, 2]},
        "shuffle": {"groups": 4},
        "pad": {"padding": [0, 0, 0, 0, 4, 4]},
        "reflect": {"padding": [0, 0, 0, 0, 4, 4]},
        "prelu": {"num_parameters": 4},
    }
    model = whole_norms()
    assert {name: sizes.keys() for name, sizes in module_attributes(model).items()} == {
        name: sizes.keys() for name, sizes in halves.items()
    }
    apply_attributes(model, halves)
    assert module_attributes(model) == halves
    assert model["layer"].normalized_shape == (4,)  # type: ignore[index]


HOSTILE_SIZES: dict[str, dict[str, Any]] = {
    "a method": {"forward": 1},
    "a dunder": {"__class__": 1},
    "the mode": {"training": 1},
    "a child": {"first": 1},
    "a list for a tuple of another length": {"pair": [1, 2, 3]},
    "a number for a tuple": {"pair": 3},
    "a tuple for a number": {"width": [3]},
    "a negative number": {"width": -1},
    "more than a network could have": {"width": 1_000_001},
    "a negative entry": {"pair": [1, -2]},
    "another key": {"table": {"b": 1}},
    "a text": {"name": 3},
    "a float": {"rate": 3},
    "a flag": {"flag": 3},
    "a private dict": {"_modules": {"first": 1}},
}


@pytest.mark.parametrize("case", HOSTILE_SIZES)
def test_a_file_sets_nothing_but_counts_where_counts_are(case: str) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.pair, self.table = 4, (4, 4), {"a": 4}
            self.name, self.rate, self.flag = "net", 0.5, True
            self.first = nn.Conv2d(3, 4, 1)

    module = Module()
    before = dict(vars(module))
    with contextlib.suppress(SurgeryError):
        apply_attributes(module, {"": HOSTILE_SIZES[case]})
        assert case in ("a tuple for a number", "another key")  # a list or dict may have grown in forward: left alone
    assert vars(module) == before


def test_a_buffer_outside_the_state_dict_comes_back_cut(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.register_buffer("scale", torch.arange(1.0, 9.0).view(1, 8, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * self.scale).mean((2, 3))

    example = torch.randn(2, 3, 8, 8)
    result = halved(Scaled(), example)
    save(result.model, tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors", factory=Scaled)
    assert back.scale.shape == (1, 4, 1, 1)
    assert "scale" not in back.state_dict()
    assert torch.equal(back(example), result.model.eval()(example))


def test_a_file_without_the_newer_entries_still_loads(tmp_path: Path) -> None:
    """As earlier versions wrote it: no plain numbers, no buffer outside the state dict."""
    example = torch.rand(2, 3, 8, 8)
    model, plan = pruned(randomise(Block()), example)
    save(model, tmp_path / "m.safetensors", plan=plan)
    tensors, metadata = load_tensors(tmp_path / "m.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if ":" not in name}
    save_tensors(tmp_path / "m.safetensors", tensors, metadata)
    assert torch.equal(load(tmp_path / "m.safetensors", factory=Block)(example), model.eval()(example))
