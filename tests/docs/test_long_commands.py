"""The commands of the pages that take minutes or processes of their own: typed in a copy of the checkout.

As they stand there, but for what makes them short: flags at the end, of which the last wins.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import prunus
from tests.docs.desk import UNMARKED, is_long, shortened, skip_what_is_missing, typed, write_desk
from tests.docs.pages import ROOT, Block, commands_of

BLOCKS = [block for block in UNMARKED if any(map(is_long, commands_of(block)))]
SHORTER = {
    "benchmarks/accuracy.py": "--budgets 0.5 --methods A l1_norm --seeds 0 --finetune-epochs 1 --calibration 16 "
    "--rates 0.05",
    "benchmarks/allocation.py": "--criteria l1_norm --ways none --macs 0.5 --calibration 16 --evaluations 1",
    "benchmarks/analysis.py": "--networks resnet8 --blocks 1 --repeats 1",
    "benchmarks/balance.py": "--networks resnet8",
    "benchmarks/deployment.py": "--runtimes ort torch --samples 8 --calls 3",
    "benchmarks/depthwise.py": "--networks resnet8 --turns 1 --batch-size 2",
    "benchmarks/dynamic_cost.py": "--model resnet8 --images 64 --search-epochs 2 --finetune-epochs 1 "
    "--remove-after 1 --batch-size 16",
    "benchmarks/own_loop.py": "--model resnet8 --steps 2 --batch-size 8",
    "benchmarks/training.py": "--networks resnet8 --turns 1 --steps 2 --batch-size 8",
}
STOPPED = 3  # the exit code of a sweep that was told to stop after so long


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what commands and scripts use of this checkout, with everything else that they take for granted."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("benchmarks", "scripts", "reproduce", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "img"))
    shutil.copy(ROOT / "README.md", folder)
    shutil.copytree(ROOT / "results" / "cpu" / "dense", folder / "results" / "cpu" / "dense")
    for measured in (folder / "docs" / "results" / "benchmarks").glob("allocation*.json"):
        measured.unlink()  # of other networks, which are never mixed
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PRUNUS_CACHE", str(folder / "cache"))
        write_desk(folder)
        typed(
            "prunus compress --model resnet8 --data photos.zip --macs 0.25 --epochs 1 --finetune-epochs 1 --out quarter"
        )
    network = prunus.build_model("resnet20", num_classes=10)
    prunus.save(network, folder / "dense.safetensors", model_name="resnet20", num_classes=10, in_channels=3)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_of_long_commands_runs(block: Block, checkout: Path) -> None:
    lines = [line for line in commands_of(block) if is_long(line)]
    skip_what_is_missing(lines)
    if "litert" in block.code and find_spec("litert_torch") is None and not os.environ.get("PRUNUS_LITERT_PYTHON"):
        pytest.skip("needs litert-torch, here or where PRUNUS_LITERT_PYTHON says")
    if torch.cuda.device_count() < 2:
        lines = [line.replace("--multi_gpu", "--cpu") for line in lines]
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    made = {out for line in lines if " compress " in line for out in re.findall(r"--out (\S+)", line)}
    for run in {run for line in lines for run in re.findall(r"runs/[\w-]+", line)} - made:
        shutil.copytree(checkout / ("quarter" if run.endswith("quarter") else "base"), checkout / run)
    for line in lines:
        type_in(line, checkout)
    for out in made:
        assert (checkout / out / "summary.json").is_file(), out
        proofs = json.loads((checkout / out / "verification.json").read_text())
        assert proofs["passed"], out


def type_in(line: str, folder: Path) -> None:
    words = shlex.split(line, comments=True)
    program = re.sub(r"^[\w./]*bin/", "", words[0])
    if "prunus" in words:
        place = words.index("prunus") + 1
        words = [*words[:place], *shortened(words[place:])]
    words += shlex.split(SHORTER.get(words[1], ""))
    if re.search(r"--latency [\d.]+[mu]s", line):
        words += ["--latency", "0.9"]  # what can be had in so long is another thing on every machine
    if words[:2] == ["accelerate", "launch"]:
        words = words[1:]
    command = {
        "prunus": [sys.executable, "-m", "prunus"],
        "python": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
        "accelerate": [sys.executable, "-m", "accelerate.commands.launch"],  # the program imports far more
    }[program]
    sweeping = words[1] == "sweep"
    words += ["--max-minutes", "0.3"] if sweeping else []
    before = written(folder)
    environment = {**os.environ, "PRUNUS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0 or (sweeping and done.returncode == STOPPED), f"{line}\n{done.stdout}\n{done.stderr}"
    assert done.stdout or written(folder) != before, f"{line} says nothing and writes nothing"


def written(folder: Path) -> dict[str, int]:
    """When each page and result was written last."""
    pages = [folder / "README.md", *folder.glob("docs/**/*.*"), *folder.glob("runs/*")]
    return {str(page): page.stat().st_mtime_ns for page in pages}
