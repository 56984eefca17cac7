"""Exported files: each run in its own runtime, beside PyTorch, and used without the code that made them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.deploy.exported import CLASSES, INFO, pruned, write_digits_run
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.deploy import FORMATS, WRITTEN, Exported, open_exported
from prunus.deploy.comparing import Samples, compare, outputs_of, random_samples
from prunus.deploy.formats import litert
from prunus.errors import ConfigError, DataError, ModelError, VerificationError

QUICK = ("onnx", "pt2", "ncnn")
SHAPE = (3, 16, 16)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="prunus", env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return pruned("resnet8", num_classes=5, side=16)


@pytest.fixture(scope="module")
def files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    done = prunus.export(network, folder, QUICK, input_shape=SHAPE, model_name="resnet8", **INFO)
    assert {file.name for file in folder.iterdir()} == {file.name for row in done for file in row.files}
    return {row.format: row for row in done}


@pytest.mark.parametrize("name", QUICK)
def test_a_file_does_what_the_network_does(name: str, files: dict[str, Exported], network: nn.Module) -> None:
    comparison = files[name].comparison
    assert comparison.images == 64 and comparison.max_relative_error < 1e-5 and comparison.agreement == 1
    runner = prunus.open_exported(files[name].files[0])
    for count in (1, 3):  # the batch is free
        images = torch.randn(count, *SHAPE)
        with torch.no_grad():
            expected = network(images).numpy()
        assert np.abs(runner(images.numpy()) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", QUICK)
def test_a_file_says_all_that_is_needed_to_use_it(name: str, files: dict[str, Exported], network: nn.Module) -> None:
    info = open_exported(files[name].files[0]).info
    batch = 1 if name == "ncnn" else None
    assert (info.format, info.model, info.input_shape, info.batch) == (name, "resnet8", SHAPE, batch)
    assert (info.classes, info.mean, info.std) == (CLASSES, INFO["mean"], INFO["std"])
    assert info.versions["torch"] == torch.__version__
    assert info.params == sum(parameter.numel() for parameter in network.parameters())
    assert info.macs == prunus.count_cost(network, torch.zeros(1, *SHAPE)).macs
    assert info.batchnorm_folded and info.precision == "float32"
    assert info.opset == (18 if name == "onnx" else None)


@pytest.mark.parametrize("name", QUICK)
def test_a_file_holds_no_paths_of_the_machine(name: str, files: dict[str, Exported]) -> None:
    assert len(files[name].files) == (3 if name == "ncnn" else 1)
    content = b"".join(file.read_bytes() for file in files[name].files)
    assert len(content) == files[name].size_bytes
    assert b".py" not in content and str(Path(prunus.__file__).parent).encode() not in content


def test_onnx_has_no_batchnorm_left_and_a_free_batch(files: dict[str, Exported]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(files["onnx"].files[0])
    onnx.checker.check_model(model)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert {found.domain: found.version for found in model.opset_import}[""] == 18
    for value, name in ((model.graph.input[0], "images"), (model.graph.output[0], "logits")):
        assert value.name == name and value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_ncnn_stores_weights_as_float16_if_asked(
    files: dict[str, Exported], network: nn.Module, tmp_path: Path
) -> None:
    (half,) = prunus.export(network, tmp_path, ["ncnn"], input_shape=SHAPE, half=True)
    assert half.info.precision == "float16 weights"
    sizes = [next(file for file in row.files if file.suffix == ".bin").stat().st_size for row in (half, files["ncnn"])]
    assert 0.45 < sizes[0] / sizes[1] < 0.6
    assert 1e-6 < half.comparison.max_relative_error < 1e-2


class OwnShape(nn.Module):
    """Its code writes the batch down."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.reshape(1, 12)) if x.shape[0] == 1 else torch.cat([self(row[None]) for row in x])
        return logits


def test_a_network_that_fixes_its_batch_is_run_image_by_image(tmp_path: Path) -> None:
    (row,) = prunus.export(OwnShape(), tmp_path, ["pt2"], input_shape=(3, 2, 2))
    assert row.info.batch == 1
    assert row.comparison.images == 64 and row.comparison.max_relative_error < 1e-5


class Restless(nn.Module):
    """Gives something else every time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits + torch.rand_like(logits)


def test_a_file_that_does_something_else_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"the pt2 file does not do what the network does.*It was not kept"):
        prunus.export(Restless(), tmp_path, ["pt2"], input_shape=(3, 2, 2))
    assert list(tmp_path.iterdir()) == []


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


def test_networks_that_no_file_can_hold_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="returns tuple, and a file has one tensor"):
        prunus.export(Two(), tmp_path, ["pt2"], input_shape=(3, 2, 2))
    with pytest.raises(ModelError, match=r"torch\.export cannot capture the network"):
        prunus.export(Undecided(), tmp_path, ["pt2"], input_shape=(3, 2, 2))
    with pytest.raises(ModelError, match="does not run on images of"):
        prunus.export(nn.Conv2d(4, 2, 3), tmp_path, ["pt2"], input_shape=(3, 8, 8))


def test_wrong_formats_and_missing_extras_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--to onx: there is no such format. Did you mean onnx\?"):
        prunus.export(nn.Flatten(), tmp_path, ["onx"], input_shape=(3, 2, 2))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"--to onnx needs onnxscript.*pip install 'prunus\[onnx\]'") as caught:
        prunus.export(nn.Flatten(), tmp_path, ["onnx"], input_shape=(3, 2, 2))
    assert "\n" not in str(caught.value)


def test_the_converter_of_litert_is_asked_for_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    monkeypatch.delenv(litert.PYTHON, raising=False)
    with pytest.raises(ConfigError, match=r"needs litert-torch.*export PRUNUS_LITERT_PYTHON=") as caught:
        prunus.export(nn.Flatten(), tmp_path, ["litert"], input_shape=(3, 2, 2))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
    monkeypatch.setenv(litert.PYTHON, str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="there is no such file"):
        prunus.export(nn.Flatten(), tmp_path, ["litert"], input_shape=(3, 2, 2))


def test_images_of_another_size_are_refused(files: dict[str, Exported]) -> None:
    with pytest.raises(DataError, match="takes images of 3×16×16, and these are 3×8×8"):
        open_exported(files["onnx"].files[0])(np.zeros((1, 3, 8, 8), np.float32))


def test_a_comparison_sees_classes_errors_and_accuracies() -> None:
    samples = Samples(torch.eye(4).view(4, 4, 1, 1), torch.tensor([0, 1, 2, 0]))
    expected = outputs_of(nn.Flatten(), samples)
    found = compare(
        lambda images: images.reshape(len(images), -1) + np.array([0, 0, 0, 0.25], np.float32), expected, samples
    )
    assert (found.images, found.max_error, found.agreement) == (4, 0.25, 1.0)
    assert (found.accuracy, found.torch_accuracy) == (0.75, 0.75)
    flipped = compare(lambda images: -2 * images.reshape(len(images), -1), expected, samples)
    assert (flipped.max_relative_error, flipped.agreement, flipped.accuracy) == (3.0, 0.0, 0.25)
    assert compare(lambda images: np.full((4, 4), np.nan, np.float32), expected, samples).max_error == float("inf")
    assert torch.equal(random_samples((2, 3)).images, random_samples((2, 3)).images)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    write_digits_run(folder)
    return folder


def test_the_commands_export_a_run_and_predict_with_its_files(run: Path, tmp_path: Path) -> None:
    result = command("export", str(run), "--to", "onnx,pt2,ncnn", "--samples", "40")
    assert result.exit_code == 0, result.output
    rows = json.loads((run / "export" / "export.json").read_text())
    assert [row["format"] for row in rows] == ["onnx", "pt2", "ncnn"]
    assert all(row["comparison"]["images"] == 40 and row["comparison"]["agreement"] == 1 for row in rows)
    assert all(row["comparison"]["accuracy"] == row["comparison"]["torch_accuracy"] is not None for row in rows)
    assert "model.onnx" in result.output and "on 40 test images" in result.output

    data = prunus.load_data("digits")
    images = []
    for number in (0, 7):
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(data.test_images[number, 0].numpy()).resize((24, 24), Image.Resampling.NEAREST).save(images[-1])
    model = prunus.load(run / "model.safetensors")
    mean, std = data.mean[0], data.std[0]
    shrunk = [np.asarray(Image.open(image).resize((8, 8), Image.Resampling.BILINEAR)) for image in images]
    with torch.no_grad():
        expected = model(((torch.tensor(np.stack(shrunk))[:, None] / 255) - mean) / std).softmax(1)
    likeliest = [f"{data.classes[int(row.argmax())]} {100 * float(row.max()):.1f} %" for row in expected]
    for file in ("export/model.onnx", "export/model.pt2", "export/model.ncnn.param", "model.safetensors", ""):
        told = command("predict", str(run / file), *map(str, images), "--top", "1")
        assert told.stdout.splitlines() == [f"{image}: {line}" for image, line in zip(images, likeliest, strict=True)]
    rows = json.loads(command("predict", str(run), str(images[0]), "--json").stdout)
    assert len(rows) == 1 and next(iter(rows[0]["classes"])) == data.classes[int(expected[0].argmax())]


def test_the_dense_network_and_any_network_by_name_are_exported(run: Path, tmp_path: Path) -> None:
    result = command("export", str(run), "--to", "pt2", "--dense", "--samples", "8", "--no-fold")
    assert result.exit_code == 0, result.output
    info = open_exported(run / "export" / "dense.pt2").info
    dense = prunus.load(run / "dense.safetensors")
    assert info.params == sum(parameter.numel() for parameter in dense.parameters())
    assert not info.batchnorm_folded
    result = command("export", "resnet8", "--to", "pt2", "--out", str(tmp_path), "--input-shape", "3,8,8")
    assert result.exit_code == 0, result.output
    assert open_exported(tmp_path / "model.pt2").info.input_shape == (3, 8, 8)


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return logits


def test_a_model_file_from_outside_the_zoo_names_what_it_was_pruned_from(tmp_path: Path) -> None:
    example = torch.randn(1, 3, 8, 8)
    small = prunus.prune(Mine(), example, pruning_ratio=0.5).model
    prunus.save(small, tmp_path / "mine.safetensors", input_shape=(3, 8, 8))
    plain = command("export", str(tmp_path / "mine.safetensors"), "--to", "pt2")
    assert plain.exit_code == 2 and "--network" in plain.stderr
    named = command("export", str(tmp_path / "mine.safetensors"), "--to", "pt2", "--network", f"{__file__}:Mine")
    assert named.exit_code == 0, named.output
    found = open_exported(tmp_path / "export" / "model.pt2")(example.numpy())
    assert np.allclose(found, small.eval()(example).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "runs/nowhere"], "there is no such run folder or file"),
        (["export", "resnet9"], "There is no model named 'resnet9'"),
        (["export", "resnet8", "--to", "tflit"], "there is no such format"),
        (["export", "resnet8", "--input-shape", "3,x"], "type channels, height and width"),
        (["predict", "nothing.onnx", "a.png"], "there is no such file"),
        (["predict", "a.txt", "a.png"], "none of the endings"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], words: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr and "Traceback" not in result.output


NETWORKS = ("resnet20", "vgg16_bn", "googlenet", "mobilenetv2_half", "shufflenetv2", "densenet40")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wanted", WRITTEN)
def test_every_runtime_agrees_on_every_kind_of_network(wanted: str, name: str, tmp_path: Path) -> None:
    for module in FORMATS[wanted].writing:
        pytest.importorskip(module)
    if wanted == "litert" and not os.environ.get(litert.PYTHON):
        pytest.skip(f"needs litert-torch, by {litert.PYTHON}")
    side = 16 if name == "googlenet" else 32  # it computes ten times as much as the next
    samples = random_samples((3, side, side), count=200)
    (row,) = prunus.export(pruned(name), tmp_path, [wanted], input_shape=(3, side, side), samples=samples)
    assert row.comparison.images == 200
    assert row.comparison.max_relative_error < 1e-4
    assert row.comparison.agreement == 1
