"""The commands that pages tell people to type are run: on tiny data, for an epoch, and else as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import prunus
from prunus.cli import app
from tests.data.samples import cifar_arrays, write_tar, write_zip
from tests.docs.pages import ROOT, Block, blocks_of, commands_of, pages

SHELL = [block for page in pages() for block in blocks_of(page) if block.language == "sh"]
# What is not run here, and the test that runs the same: it needs minutes, another environment, or several processes.
ELSEWHERE = {
    r"prunus compress .*--latency": "tests/pipeline/test_latency_runs.py",
    r"prunus compress .*--int8": "tests/pipeline/test_int8_runs.py",
    r"prunus bench runs/fast$": "tests/pipeline/test_latency_runs.py",
    r"prunus export .*litert": "tests/deploy/test_export.py",
    r"prunus sweep reproduce/": "tests/test_reproduce_table.py",
    r"(?:torchrun|accelerate launch) .*-m prunus compress": "tests/test_distributed.py",
    r"(?:\S*/)?python benchmarks/(\w+)\.py": "",  # any test that names it, as for scripts
    r"(?:\S*/)?python scripts/(\w+)": "",
}
# Installing is what .ci/run does; extras, scripts and flags are looked up by test_pages.py.
INSTALLING = r"python3 -m venv |(?:\S*/)?pip install |export PRUNUS_|\.venv/bin/python -m mkdocs |scripts/check$"
NEEDS = {
    "--to onnx": ("onnxruntime", "onnxscript"),
    "ort": ("onnxruntime",),
    "ncnn": ("ncnn", "pnnx"),
    "timm:": ("timm",),
}
NETS = "import prunus\n\n\ndef build():\n    return prunus.build_model('resnet8')\n"


def lines_of(blocks: Iterable[Block]) -> list[str]:
    return [line for block in blocks for line in commands_of(block)]


def elsewhere(line: str) -> str | None:
    return next((test for pattern, test in ELSEWHERE.items() if re.match(pattern, line)), None)


def is_run_here(line: str) -> bool:
    return line.startswith("prunus ") and elsewhere(line) is None


BLOCKS = [
    block
    for block in SHELL
    if not {"run", "not run", "command"} & set(block.marks) and any(map(is_run_here, commands_of(block)))
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands take for granted, everything tiny, and a finished run."""
    folder = tmp_path_factory.mktemp("desk")
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
    write_cifar(folder)
    (folder / "run.yaml").write_text("finetune_epochs: 1\n")
    (folder / "sweep.yaml").write_text(
        "base: {model: resnet8, data: digits, epochs: 1, finetune_epochs: 0, threads: 1}\ngrid: {macs: [0.5]}\n"
    )
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "nets.py").write_text(NETS)
    network = prunus.build_model("resnet56", num_classes=100)
    prunus.save(network, folder / "dense.safetensors", model_name="resnet56", num_classes=100, in_channels=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PRUNUS_CACHE", str(folder / "cache"))
        run = "prunus compress --model resnet8 --data photos.zip --macs 0.5 --epochs 1 --finetune-epochs 1 --out base"
        invoke(run)
        if find_spec("onnxruntime") and find_spec("onnxscript"):
            invoke("prunus export base --to onnx")
            for name in ("dense.onnx", "small.onnx"):
                shutil.copy("base/export/model.onnx", name)
    return folder


def write_cifar(folder: Path) -> None:
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


def shortened(words: list[str]) -> list[str]:
    """Ask for one epoch of whatever a run of compress trains, and a second or two of a search; the last flag wins."""
    if words[0] != "compress":
        return words
    short = ["--calibration-images", "16", "--finetune-epochs", "2" if "iterative" in words else "1"]
    short += [] if {"--checkpoint", "--from-scratch"} & set(words) else ["--epochs", "1"]
    short += ["--search-epochs", "1"] if "layer-fusion" in words else []
    short += ["--search-minutes", "0.02"] if "search" in words else []
    return [*words, *short]


def invoke(line: str) -> None:
    words = shortened(shlex.split(line, comments=True)[1:])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    assert done.stdout, line


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_of_commands_runs(block: Block, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in commands_of(block) if is_run_here(line)]
    missing = [
        package
        for part, packages in NEEDS.items()
        for package in packages
        if part in "\n".join(lines) and find_spec(package) is None
    ]
    if missing:
        pytest.skip(f"{block.where} needs {', '.join(missing)}")
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    monkeypatch.setenv("PRUNUS_CACHE", str(desk / "cache"))
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    shutil.rmtree("runs", ignore_errors=True)
    made = {out for line in lines if line.startswith("prunus compress") for out in re.findall(r"--out (\S+)", line)}
    for run in {run for line in lines for run in re.findall(r"runs/[\w-]+", line)} - made:
        shutil.copytree("base", run)
    if "--network timm:resnet18" in block.code:
        write_pruned_resnet18(desk / "model.safetensors")
    for line in lines:
        invoke(line)
    assert len(opened) == sum("--open" in line for line in lines)
    assert all(Path(out, "report.html").is_file() for out in made)


def write_pruned_resnet18(path: Path) -> None:
    import torch

    from prunus.models import find_network

    model = find_network("timm:resnet18").build()[0]
    pruned = prunus.prune(model, torch.randn(2, 3, 64, 64), budget=prunus.Budget(macs=0.5))
    prunus.save(pruned.model, path, plan=pruned.plan)


def test_every_other_command_has_its_test() -> None:
    tests = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)}
    lines = lines_of(block for block in SHELL if not {"run", "not run", "command"} & set(block.marks))
    assert len(lines) > 60
    for pattern, test in ELSEWHERE.items():
        assert any(re.match(pattern, line) for line in lines), f"no page says {pattern} any more"
        assert not test or (ROOT / test).is_file(), test
    for line in lines:
        if (script := re.search(r"(?:benchmarks|scripts)/(\w+)", line)) and elsewhere(line) == "":
            assert any(re.search(rf"\b{script[1]}\b", text) for text in tests.values()), f"no test of {line}"
        elif elsewhere(line) is None and not line.startswith("prunus "):
            assert re.match(INSTALLING, re.sub(r"^\S*/bin/prunus demo$", "scripts/check", line)), f"nothing runs {line}"
