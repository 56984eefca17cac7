"""Files with 8-bit integers: quick, small, and as good as PyTorch on images that the ranges were not measured on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.deploy.exported import INFO, pruned, write_digits_run
from torch import nn
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.deploy import FORMATS, Exported, Samples, open_exported
from prunus.deploy.comparing import random_samples
from prunus.deploy.formats import litert
from prunus.deploy.formats.onnx_int8 import slim
from prunus.deploy.int8_scheme import LARGEST_WEIGHT
from prunus.errors import ConfigError, VerificationError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SHAPE = (3, 16, 16)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="prunus", env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    network = pruned("resnet8", num_classes=5, side=16)
    rows = prunus.export(
        network, tmp_path_factory.mktemp("int8"), ["onnx"], input_shape=SHAPE, model_name="resnet8", int8=True, **INFO
    )
    return {row.info.precision: row for row in rows}


def test_a_second_file_holds_8_bit_integers(files: dict[str, Exported]) -> None:
    whole, small = files["float32"], files["int8"]
    assert [row.files[0].name for row in (whole, small)] == ["model.onnx", "model.int8.onnx"]
    assert 1e-4 < small.comparison.max_relative_error < 0.1
    assert small.size_bytes < 0.4 * whole.size_bytes
    model = onnx.load(small.files[0])
    onnx.checker.check_model(model)
    bytes_of = dict.fromkeys(onnx.TensorProto.DataType.values(), 0)
    for constant in model.graph.initializer:
        bytes_of[constant.data_type] += len(constant.raw_data)
    params = sum(parameter.numel() for parameter in pruned("resnet8", num_classes=5, side=16).parameters())
    assert bytes_of[onnx.TensorProto.INT8] > 0.9 * params
    assert bytes_of[onnx.TensorProto.FLOAT] < 0.1 * bytes_of[onnx.TensorProto.INT8]


def test_the_description_says_so_and_is_whole(files: dict[str, Exported]) -> None:
    runner = open_exported(files["int8"].files[0])
    before = files["float32"].info
    assert runner.info.precision == "int8" and runner.info.versions["onnxruntime"] == onnxruntime.__version__
    assert runner.info.model_copy(update={"precision": "float32", "versions": before.versions}) == before
    assert runner(np.zeros((3, *SHAPE), np.float32)).shape == (3, 5)


def test_every_channel_has_a_scale_of_its_own(files: dict[str, Exported]) -> None:
    graph = onnx.load(files["int8"].files[0]).graph
    constants = {constant.name: constant for constant in graph.initializer}
    weights = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and constants[node.input[0]].data_type == onnx.TensorProto.INT8
    ]
    assert len(weights) >= 8
    for node in weights:
        weight, scale, zero = (constants[name] for name in node.input)
        assert list(scale.dims) == [weight.dims[0]] or weight.dims[0] == 5  # the classifier's may be transposed
        assert not np.any(onnx.numpy_helper.to_array(zero))


def test_two_products_fit_in_16_bits(files: dict[str, Exported]) -> None:
    """Without VNNI, x86 adds a pair of products so, and cuts off what does not fit."""
    constants = onnx.load(files["int8"].files[0]).graph.initializer
    weights = [onnx.numpy_helper.to_array(found) for found in constants if found.data_type == onnx.TensorProto.INT8]
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
    assert largest == LARGEST_WEIGHT and 2 * 255 * largest < 2**15


def test_the_runtime_computes_with_integers(files: dict[str, Exported], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(files["int8"].files[0], options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") >= 7 and "Conv" not in kinds and "QLinearAdd" in kinds


def test_short_names_change_nothing() -> None:
    from onnx import TensorProto, helper

    constants = [helper.make_tensor(name, TensorProto.FLOAT, [2], [1, value]) for name, value in (("a", 2), ("b", 2))]
    constants.append(helper.make_tensor("c", TensorProto.FLOAT, [2], [1, 3]))
    nodes = [
        helper.make_node("Add", ["in", "a"], ["a long name"], name="first"),
        helper.make_node("Mul", ["a long name", "b"], ["t4"]),
        helper.make_node("Clip", ["t4", "", "top"], ["c0"]),
        helper.make_node("Sub", ["c0", "c"], ["out"]),
    ]
    constants.append(helper.make_tensor("top", TensorProto.FLOAT, [], [9]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("in", "out")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    given = {"in": np.array([4, 1], np.float32)}

    def run() -> list[float]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return [float(number) for number in session.run(None, given)[0]]

    assert run() == [4, 3]
    slim(model)
    onnx.checker.check_model(model)
    assert run() == [4, 3] and len(model.graph.initializer) == 3
    assert max(len(name) for node in model.graph.node for name in node.output) <= 3


def test_ranges_are_measured_on_the_images_that_are_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    images = 100 * random_samples((1, 4, 4), 300).images
    with torch.no_grad():
        labels = network(images).argmax(1)
    samples, seen = Samples(images[:150], labels[:150]), Samples(images[150:], labels[150:])
    whole, small = prunus.export(
        network, tmp_path, ["onnx"], input_shape=(1, 4, 4), samples=samples, int8=True, calibration=seen
    )
    assert whole.comparison.accuracy == 1 and (small.comparison.accuracy or 0) > 0.95
    with pytest.raises(VerificationError, match=r"at least 80% for int8.*It was not kept\. Calibrate on images like"):
        prunus.export(network, tmp_path / "noise", ["onnx"], input_shape=(1, 4, 4), samples=samples, int8=True)
    assert [file.name for file in (tmp_path / "noise").iterdir()] == ["model.onnx"]


def test_formats_without_8_bit_integers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8-bit integers are written to onnx.*, and not to pt2"):
        prunus.export(nn.Flatten(), tmp_path, ["pt2"], input_shape=(3, 2, 2), int8=True)


def test_the_commands_calibrate_on_the_training_images(tmp_path: Path) -> None:
    run = tmp_path / "a"
    write_digits_run(run)
    result = command("export", str(run), "--to", "onnx,pt2", "--int8")
    assert result.exit_code == 0, result.output
    rows = json.loads((run / "export" / "export.json").read_text())
    assert [(row["format"], row["precision"]) for row in rows] == [
        ("onnx", "float32"),
        ("onnx", "int8"),
        ("pt2", "float32"),
    ]
    found = rows[1]["comparison"]
    assert found["agreement"] > 0.97 and abs(found["accuracy"] - found["torch_accuracy"]) < 0.01
    assert "model.int8.onnx" in result.output and "those of noise" not in result.output
    told = command("bench", str(run), "--int8", "--runs", "3", "--no-memory", "--json")
    assert told.exit_code == 0, told.output
    rows = json.loads(told.stdout)
    assert [row["name"] for row in rows] == ["dense (ort)", "dense int8 (ort)", "pruned (ort)", "pruned int8 (ort)"]
    assert [row["precision"] for row in rows] == ["float32", "int8"] * 2
    assert "for a run folder" in command("bench", str(run / "export" / "model.onnx"), "--int8").stderr


def test_without_training_images_it_is_said(tmp_path: Path) -> None:
    result = command("export", "resnet8", "--int8", "--out", str(tmp_path), "--input-shape", "3,16,16")
    assert result.exit_code == 0, result.output
    assert "those of noise: good for timing, not for use" in result.stderr


NETWORKS = ("resnet20", "vgg16_bn", "mobilenetv2_half", "shufflenetv2", "densenet40")


RESNET8 = (("executorch", "resnet8"), ("litert", "resnet8"))


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "name"), [*(("onnx", name) for name in NETWORKS), *RESNET8])
def test_every_kind_of_network_is_quantised(wanted: str, name: str, tmp_path: Path) -> None:
    for module in FORMATS[wanted].writing:
        pytest.importorskip(module)
    if wanted == "litert" and not os.environ.get(litert.PYTHON):
        pytest.skip(f"needs litert-torch, by {litert.PYTHON}")
    samples, seen = random_samples((3, 32, 32), 200), Samples(random_samples((3, 32, 32), 400).images[200:])
    whole, small = prunus.export(
        pruned(name), tmp_path, [wanted], input_shape=(3, 32, 32), samples=samples, int8=True, calibration=seen
    )
    assert small.info.precision == "int8" and small.files[0].name == f"model.int8{FORMATS[wanted].suffix}"
    assert 1e-4 < small.comparison.max_relative_error < 0.1
    assert small.size_bytes < (0.4 if name != "resnet8" else 0.7) * whole.size_bytes
