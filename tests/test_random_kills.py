"""Twenty kills at random moments, and the very same bits at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_resume import results

KILLS = 20
RUN = ["compress", "--model", "resnet8", "--data", "digits", "--threads", "1", "--device", "cpu", "--batch-size", "64"]
METHOD = ["--method", "layer-fusion", "--macs", "0.5", "--search-epochs", "6", "--remove-after", "2"]
EPOCHS = ["--epochs", "6", "--finetune-epochs", "6"]


def run(program: list[str], arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_killed_twenty_times_at_random(tmp_path: Path) -> None:
    command = [*RUN, *METHOD, *EPOCHS, "--out"]
    run(["-m", "prunus"], [*command, str(tmp_path / "whole")])
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    nursery = [str(Path(__file__).with_name("killing.py")), str(len(rows)), str(KILLS), "0", "--"]
    said = run(nursery, [*command, str(tmp_path / "parts")])
    kills = [json.loads(line) for line in said.splitlines()]
    assert len(kills) == KILLS
    assert any(kill["left"] for kill in kills), "no kill hit a file that was being written"
    stages = [json.loads(row)["stage"] for row in rows]
    assert {stages[min(kill["row"], len(stages) - 1)] for kill in kills} == set(stages)
    run(["-m", "prunus"], [*command, str(tmp_path / "parts")])
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert not (tmp_path / "parts" / "checkpoints").exists()
    assert not [*(tmp_path / "parts").glob(".*.tmp")]
