"""What layers take in a runtime: the parts exactly, the whole on a real runtime; no clock decides a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.deploy.file_info import FileInfo
from prunus.deploy.formats.onnx import encode_layer, open_bytes
from prunus.deploy.layer_shapes import LayerShape, layer_uses
from prunus.deploy.layer_times import _KINDS, Clock, _fitted, _left_out, _table, liked_multiple, measure_times
from prunus.errors import ConfigError, ModelError
from prunus.graph.trace import trace


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.depth(self.stem(x).relu())).relu()
        logits: Tensor = self.fc(self.point(self.point.weight.new_zeros(()) + x).relu().mean((2, 3)))
        return logits


EXAMPLE = torch.zeros(1, 3, 16, 16)


def test_uses_by_hand() -> None:
    model = Small().train()
    stem, depth, point, fc = layer_uses(model, EXAMPLE)
    assert model.training
    assert (stem.weight, stem.inputs, stem.outputs) == ("stem.weight", 3, 8)
    assert stem.shape == LayerShape("convolution", (3, 3), (2, 2), (1, 1), (1, 1), 1, (16, 16), 64)
    assert (depth.inputs, depth.outputs) == (8, 8)
    assert depth.shape == LayerShape("depthwise", (3, 3), (1, 1), (1, 1), (1, 1), 0, (8, 8), 64)
    assert (point.inputs, point.outputs, point.shape.kind) == (8, 12, "pointwise")
    assert (fc.weight, fc.inputs, fc.outputs, fc.shape) == ("fc.weight", 12, 5, LayerShape("linear"))


def test_a_layer_alone_is_the_layer() -> None:
    for use in layer_uses(Small(), EXAMPLE):
        layer = use.shape.build(6, 6)
        shape = use.shape.input_shape(6)
        runner = open_bytes(encode_layer(layer, FileInfo(format="onnx", input_shape=shape)), Path("layer.onnx"), 1)
        images = torch.randn(2, *shape)
        expected = layer(images).relu().detach().numpy()
        assert np.abs(runner(images.numpy()) - expected).max() < 1e-5
        assert expected.shape[2:] == () or expected.shape[2] * expected.shape[3] == use.shape.positions


class Exact:
    """A clock whose layers take just what a form says, in seconds."""

    def __init__(self, block: int = 1) -> None:
        self.block = block

    def layer(self, layer: nn.Conv2d | nn.Linear, input_shape: tuple[int, ...]) -> float:
        outputs, inputs = layer.weight.shape[:2]
        outputs, inputs = (-(-width // self.block) * self.block for width in (outputs, inputs))
        return 2e-6 + 3e-7 * outputs + 5e-9 * outputs * inputs


def test_a_table_that_has_the_form_is_found_exactly() -> None:
    shape = layer_uses(Small(), EXAMPLE)[2].shape
    fitted, error = _table(Exact(), shape, (64, 32))  # type: ignore[arg-type]
    assert fitted == pytest.approx([2e-6, 3e-7, 0.0, 5e-9], rel=1e-6, abs=1e-14)
    assert error < 1e-9
    stairs, error = _table(Exact(block=24), shape, (64, 32))  # type: ignore[arg-type]
    assert (stairs >= 0).all()
    assert 0.001 < error < 0.5


def test_the_multiple_is_the_runtime_s_block() -> None:
    uses = [dataclasses.replace(use, inputs=64, outputs=64) for use in layer_uses(Small(), EXAMPLE)[2:3]]
    for block, found in ((1, 1), (4, 4), (8, 8), (16, 16)):
        assert liked_multiple(Exact(block), uses) == found  # type: ignore[arg-type]


def test_networks_set_the_tables_right() -> None:
    random = np.random.default_rng(0)
    features = random.uniform(0.5, 2.0, (7, len(_KINDS) + 2)) * [1e-4, 1e-4, 1e-5, 1e-6, 1e5, 1.0]
    truth = np.array([1.3, 0.8, 1.1, 1.0, 2e-9, 3e-5])
    seconds = features @ truth
    fitted = _fitted(features, seconds)
    assert (fitted >= 0).all()
    assert features @ fitted == pytest.approx(seconds, rel=0.05)
    assert 0 < _left_out(features, seconds) < 0.2
    # Nothing but its first layers tells a network apart from another: they count as they do alone.
    alone = np.zeros((1, len(_KINDS) + 2))
    alone[0, 0], alone[0, -1] = 1e-3, 1.0
    assert _fitted(alone, np.array([1e-3]))[0] == pytest.approx(1.0, rel=0.05)


def test_measured_on_the_real_runtime_and_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    graph = trace(model, EXAMPLE)
    steps: list[tuple[int, int]] = []
    found = measure_times(model, graph, EXAMPLE, cache_dir=tmp_path, progress=lambda done, of: steps.append((done, of)))
    assert set(found.times) == {"stem.weight", "depth.weight", "point.weight", "fc.weight"}
    timed = graph.with_times(found.times)
    assert timed.times["stem.weight"].of(8, 3) > 0
    assert found.runtime.startswith("ONNX Runtime")
    assert found.table_error >= 0
    assert steps == sorted(steps)
    assert steps[-1][0] <= steps[-1][1]
    (file,) = tmp_path.iterdir()
    steps.clear()
    assert measure_times(model, graph, EXAMPLE, cache_dir=tmp_path, progress=lambda *at: steps.append(at)) == found
    assert not steps
    file.write_text(file.read_text().replace('"multiple"', '"multiples"'))
    again = measure_times(model, graph, EXAMPLE, cache_dir=tmp_path, progress=lambda *at: steps.append(at))
    assert steps
    assert set(again.times) == set(found.times)


def test_wrong_words() -> None:
    model = Small()
    with pytest.raises(ConfigError, match="--runtime tflite: latency can be measured in ort, "):
        measure_times(model, trace(model, EXAMPLE), EXAMPLE, runtime="tflite")
    with pytest.raises(ModelError, match="networks that take one tensor"):
        measure_times(model, trace(model, EXAMPLE), (EXAMPLE, EXAMPLE))
    empty = nn.ReLU()
    with pytest.raises(ModelError, match="no convolution or linear layer that could be timed"):
        measure_times(empty, trace(empty, EXAMPLE), EXAMPLE)
    assert Clock("ort", 1).version.startswith("ONNX Runtime")
