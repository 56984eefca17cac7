"""Files that are cut short, damaged or made to do harm: one clear error each, and nothing in them is executed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import prunus
from prunus.cli import app
from prunus.deploy import open_exported
from prunus.errors import FileFormatError

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    rows = prunus.export(model, folder, ["onnx", "pt2", "ncnn"], input_shape=(3, 4, 4))
    small = prunus.build_model("resnet8", num_classes=2)
    file = folder / "model.safetensors"
    prunus.save(small, file, model_name="resnet8", num_classes=2, in_channels=3, input_shape=(3, 8, 8))
    return {row.format: row.files[0] for row in rows} | {"safetensors": file}


@pytest.mark.parametrize("name", ["onnx", "pt2", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_what_is_cut_short_is_refused(name: str, share: float, good: dict[str, Path], tmp_path: Path) -> None:
    content = good[name].read_bytes()
    file = tmp_path / good[name].name
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError) as caught:
        open_exported(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["onnx", "pt2", "safetensors"])
@pytest.mark.parametrize("content", [b"\x80\x04cos\nsystem\n", b"PK\x05\x06" + bytes(18), bytes(range(256)) * 20])
def test_what_is_something_else_is_refused(name: str, content: bytes, good: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / good[name].name
    file.write_bytes(content)
    with pytest.raises(FileFormatError):
        open_exported(file)
    shown = CliRunner().invoke(app, ["predict", str(file), "image.png"], prog_name="prunus")
    assert shown.exit_code == 2 and shown.stderr.startswith("error: ") and "Traceback" not in shown.output


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.98])
def test_ncnn_never_reads_what_is_not_described(
    damaged: int, share: float | None, good: dict[str, Path], tmp_path: Path
) -> None:
    names = ("model.ncnn.param", "model.ncnn.bin", "model.ncnn.json")
    for number, name in enumerate(names):
        content = (good["ncnn"].parent / name).read_bytes()
        if number != damaged:
            (tmp_path / name).write_bytes(content)
        elif share is not None:
            (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match=names[damaged].replace(".", r"\.")):
        open_exported(tmp_path / names[0])


def rewritten(source: Path, target: Path, changes: Mapping[str, bytes | None]) -> Path:
    """Copy a .pt2 archive with other contents of some members; None leaves one out."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    members.update({name: content for name, content in changes.items() if content is not None})
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            if changes.get(name, b"") is not None:
                archive.writestr(f"{root}/{name}", content)
    return target


def member(source: Path, name: str) -> Any:
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        return json.loads(archive.read(f"{root}/{name}"))


class Touch:
    """Unpickled, it leaves a mark on the disk."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.mark,))


def as_torch_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_the_pickled_example_inputs_of_a_pt2_file_are_never_read(good: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = rewritten(good["pt2"], tmp_path / "a.pt2", {SAMPLES: as_torch_pickle(((Touch(mark),), {}))})
    runner = open_exported(file)
    assert runner(torch.zeros(2, 3, 4, 4).numpy()).shape == (2, 2)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark)))  # the weapon is sharp
    assert mark.exists()


def changed_model(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], dict[str, bytes | None]]:
    def changes(source: Path) -> dict[str, bytes | None]:
        model = member(source, MODEL)
        change(model)
        return {MODEL: json.dumps(model).encode()}

    return changes


def first_node(model: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = model["graph_module"]["graph"]["nodes"][0]
    return node


def pickled_weight(source: Path) -> dict[str, bytes | None]:
    config = member(source, WEIGHTS)
    next(iter(config["config"].values()))["use_pickle"] = True
    return {WEIGHTS: json.dumps(config).encode()}


def pickled_constant(source: Path) -> dict[str, bytes | None]:
    config = {
        "config": {"x": {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}
    }
    return {CONSTANTS: json.dumps(config).encode()}


def named_expression(model: dict[str, Any]) -> None:
    text = json.dumps(model).replace("Symbol('s77'", "__import__('os').system('true') or Symbol('s77'")
    text = text.replace("Symbol('s", "__import__('os').getpid() or Symbol('s")
    model.update(json.loads(text))


def other_tree(model: dict[str, Any]) -> None:
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.dict", "collections.defaultdict")


HOSTILE: dict[str, tuple[Callable[[Path], dict[str, bytes | None]], str]] = {
    "a weight as a pickle": (pickled_weight, "a pickle"),
    "a constant as a pickle": (pickled_constant, "a pickle|a constant"),
    "a legacy pickle of weights": (lambda _: {"data/weights/model.pt": b"x"}, "'data/weights/model.pt'"),
    "compiled code": (lambda _: {"data/aotinductor/model/a.so": b"x"}, "aotinductor"),
    "a function of Python": (
        changed_model(lambda model: first_node(model).update(target="torch.hub.load")),
        r"the operation 'torch\.hub\.load'",
    ),
    "a file to read": (
        changed_model(lambda model: first_node(model).update(target="torch.ops.aten.from_file.default")),
        "from_file",
    ),
    "another operation as an argument": (
        changed_model(lambda model: first_node(model)["inputs"][0].update(arg={"as_operator": "torch.hub.load"})),
        "as_operator",
    ),
    "an expression that is evaluated": (changed_model(named_expression), "the expression"),
    "a name that is looked up": (changed_model(other_tree), "collections.defaultdict"),
    "a symbol that is evaluated": (
        changed_model(lambda model: model["range_constraints"].update({"exit()": {"min_val": 1, "max_val": 2}})),
        "the symbol",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pt2_file_that_might_run_code_is_refused(name: str, good: dict[str, Path], tmp_path: Path) -> None:
    changes, words = HOSTILE[name]
    file = rewritten(good["pt2"], tmp_path / "a.pt2", changes(good["pt2"]))
    with pytest.raises(FileFormatError, match=f"holds .*(?:{words}).*might run code, and is not opened"):
        open_exported(file)


def test_guards_are_code_and_are_dropped(good: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    guards = [f"__import__('pathlib').Path({str(mark)!r}).touch() or True"]
    changes = changed_model(lambda model: model.update(guards_code=guards))(good["pt2"])
    runner = open_exported(rewritten(good["pt2"], tmp_path / "a.pt2", changes))
    assert runner(torch.zeros(2, 3, 4, 4).numpy()).shape == (2, 2)
    assert not mark.exists()


def test_a_damaged_pt2_file_is_refused(good: dict[str, Path], tmp_path: Path) -> None:
    for changes, words in (
        ({"extra/prunus": None}, "no description by Prunus"),
        ({"extra/prunus": b"{}"}, "broken description: format: Field required"),
        ({MODEL: None}, f"lacks {MODEL}"),
        ({MODEL: b"{"}, "not JSON"),
        ({MODEL: b"{}"}, "damaged, or of another version of torch"),
        ({"data/weights/weight_0": b"1234"}, "damaged, or of another version of torch"),
    ):
        with pytest.raises(FileFormatError, match=words):
            open_exported(rewritten(good["pt2"], tmp_path / "a.pt2", changes))
    with zipfile.ZipFile(tmp_path / "b.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/prunus", bytes(10**6))
    with pytest.raises(FileFormatError, match="compressed"):
        open_exported(tmp_path / "b.pt2")


def test_onnx_files_of_others_and_with_weights_elsewhere_are_refused(good: dict[str, Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(good["onnx"])
    elsewhere = onnx.ModelProto()
    elsewhere.CopyFrom(model)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(FileFormatError, match="no description by Prunus"):
        open_exported(tmp_path / "a.onnx")
    (tmp_path / "secret").write_bytes(bytes(10**6))
    tensor = max(elsewhere.graph.initializer, key=lambda found: len(found.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", str(tmp_path / "secret")), ("offset", "0")):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "b.onnx").write_bytes(elsewhere.SerializeToString())
    with pytest.raises(FileFormatError, match="cut short, damaged or not ONNX"):
        open_exported(tmp_path / "b.onnx")
