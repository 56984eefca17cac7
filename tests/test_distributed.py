"""Two real processes on the CPU: a run as `torchrun` starts it, alone, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prunus.files import load_tensors

COMMAND = ["compress", "--model", "resnet8", "--data", "digits", "--epochs", "4", "--finetune-epochs", "2"]
METHOD = ["--method", "layer-fusion", "--macs", "0.5", "--search-epochs", "3", "--remove-after", "1"]
PLACE = ["--batch-size", "50", "--threads", "1", "--device", "cpu"]  # 1,293 images: the parts of a batch are uneven
PATIENCE = 200.0  # seconds that a run may take on a busy machine


def start(out: Path, processes: int = 2) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "prunus", *COMMAND, *METHOD, *PLACE, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )


def finish(out: Path, processes: int = 2) -> str:
    process = start(out, processes)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def kill_in_the_search(out: Path) -> None:
    process = start(out)
    deadline = time.monotonic() + PATIENCE
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or '"search"' not in metrics.read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int((out / ".lock").read_text()), signal.SIGKILL)  # rank 0; torchrun then ends the other
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


@pytest.mark.slow
def test_two_processes_make_the_network_that_one_makes_also_when_killed(tmp_path: Path) -> None:
    alone, whole, killed = (tmp_path / name for name in ("alone", "whole", "killed"))
    finish(alone, processes=1)
    said = finish(whole)
    assert said.count("test accuracy") == 1, said  # one of the two speaks
    assert said.count("verify ") == 1
    accuracies = [read(out, "summary.json")["pruned"]["test_accuracy"] for out in (alone, whole)]
    assert min(accuracies) > 0.85
    assert abs(accuracies[0] - accuracies[1]) < 0.05
    assert read(whole, "verification.json")["passed"]

    kill_in_the_search(killed)
    assert "done before: dense.safetensors" in finish(killed)
    assert read(killed, "plan.json") == read(whole, "plan.json")
    once, again = (load_tensors(out / "model.safetensors")[0] for out in (whole, killed))
    assert {name: tensor.shape for name, tensor in once.items()} == {name: t.shape for name, t in again.items()}
    for name, tensor in once.items():
        assert float((tensor.double() - again[name].double()).abs().max()) < 1e-5, name
    assert epochs(killed) == epochs(whole)


def epochs(out: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["epoch"]) for row in rows]
