"""A folder in which every command that a page shows can be typed: all that it takes for granted, made tiny."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import prunus
from prunus.cli import app
from tests.data.samples import cifar_arrays, write_tar, write_zip
from tests.docs.pages import ROOT, blocks_of, pages

UNMARKED = [
    block
    for page in pages()
    for block in blocks_of(page)
    if block.language == "sh" and not {"run", "not run", "command"} & set(block.marks)
]
"""The shell blocks that no other test runs."""

_LONG = (
    r"prunus compress .*--(?:latency|int8)",
    r"prunus bench runs/fast$",
    r"prunus export .*litert",
    r"prunus sweep reproduce/",
    r"(?:torchrun|accelerate launch) ",
    r"(?:\S*/)?python (?:benchmarks|scripts)/",
)
_NEEDS = {
    "--to onnx": ("onnxruntime", "onnxscript"),
    "ort": ("onnxruntime",),
    "ncnn": ("ncnn", "pnnx"),
    "timm:": ("timm",),
    "--int8": ("onnxruntime", "onnxscript"),
    "executorch": ("executorch",),
    "litert": ("ai_edge_litert",),
    "accelerate": ("accelerate",),
    "--latency": ("onnxruntime", "onnxscript"),
    "benchmarks/deployment": ("onnxruntime", "onnxscript"),
    "benchmarks/analysis": ("torch_pruning",),
    "benchmarks/accuracy": ("torch_pruning",),
}
_NETS = "import prunus\n\n\ndef build():\n    return prunus.build_model('resnet8')\n"


def is_long(line: str) -> bool:
    """Say whether a command takes minutes, or a process of its own."""
    return any(re.match(pattern, line) for pattern in _LONG)


def skip_what_is_missing(lines: Iterable[str]) -> None:
    """Skip a test whose commands need a package that is not there."""
    text = "\n".join(lines)
    missing = {p for part, packages in _NEEDS.items() for p in packages if part in text and find_spec(p) is None}
    if missing:
        pytest.skip(f"needs {', '.join(sorted(missing))}")


def write_desk(folder: Path) -> None:
    """Fill the working directory, which `folder` is; `base` is a finished run."""
    random = np.random.default_rng(0)
    files = {}
    for split, count in (("train", 16), ("test", 4)):
        for label in range(10):
            for number in range(count):
                place = folder / "photo.png"
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(place)
                files[f"{split}/class{label}/{number}.png"] = place.read_bytes()
    Image.open(folder / "photo.png").save(folder / "photo.jpg")
    write_zip(folder / "photos.zip", files)
    for name in ("photos.tar.xz", "cifar10-jpeg.tar.xz"):
        write_tar(folder / name, files, "xz")
    _write_cifar(folder)
    (folder / "run.yaml").write_text("finetune_epochs: 1\n")
    (folder / "sweep.yaml").write_text(
        "base: {model: resnet8, data: digits, epochs: 1, finetune_epochs: 0, threads: 1}\ngrid: {macs: [0.5]}\n"
    )
    shutil.copytree(ROOT / "models", folder / "models")
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "nets.py").write_text(_NETS)
    network = prunus.build_model("resnet56", num_classes=100)
    prunus.save(network, folder / "dense.safetensors", model_name="resnet56", num_classes=100, in_channels=3)
    typed("prunus compress --model resnet8 --data photos.zip --macs 0.5 --epochs 1 --finetune-epochs 1 --out base")
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        typed("prunus export base --to onnx")
        for name in ("dense.onnx", "small.onnx"):
            shutil.copy("base/export/model.onnx", name)


def typed(line: str) -> None:
    """Run a command of Prunus, its trainings made short."""
    done = CliRunner().invoke(app, shortened(shlex.split(line, comments=True)[1:]))
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    assert done.stdout, line


def shortened(words: list[str]) -> list[str]:
    """Ask for one epoch of whatever a run of compress trains, and a second or two of a search; the last flag wins."""
    if words[0] != "compress":
        return words
    short = ["--calibration-images", "16", "--finetune-epochs", "2" if "iterative" in words else "1"]
    short += [] if {"--checkpoint", "--from-scratch"} & set(words) else ["--epochs", "1"]
    short += ["--search-epochs", "1"] if "layer-fusion" in words else []
    short += ["--search-minutes", "0.02"] if "search" in words else []
    return [*words, *short]


def _write_cifar(folder: Path) -> None:
    """Write both CIFAR sets as their archives unpack, with random images."""
    for name, classes, batches in (
        ("cifar-10-batches-bin", 10, [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]),
        ("cifar-100-binary", 100, ["train", "test"]),
    ):
        (folder / name).mkdir()
        for seed, batch in enumerate(batches):
            pixels, labels = cifar_arrays(classes, 40, seed)
            coarse = [] if classes == 10 else [np.zeros(len(labels))]
            records = np.column_stack([*coarse, labels, pixels]).astype(np.uint8)
            (folder / name / f"{batch}.bin").write_bytes(records.tobytes())
        names = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
        (folder / name / names).write_text("".join(f"class {number}\n" for number in range(classes)))
