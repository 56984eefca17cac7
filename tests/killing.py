"""Start a run again and again in a forked process and kill it at random moments; a program of its own.

    python killing.py ROWS KILLS SEED -- compress --out FOLDER ...

A fork costs no start-up, so that twenty kills take seconds. ROWS is how many lines the metrics of the whole run have:
the kills are spread over them at random; some wait for the moment in which a checkpoint or the report is being written.
One line of JSON a kill says where the run was. What is left to do after the last one is not done here.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from prunus.cli import main
from prunus.pipeline import RunFolder

PATIENCE = 100.0  # seconds


def started(arguments: list[str]) -> int:
    """Run the command line in a process of its own; return its number."""
    process = os.fork()
    if process:
        return process
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.argv = ["prunus", *arguments]
    try:
        main()
    finally:
        os._exit(1)  # a run that ends before it is killed


def wait_for(process: int, reached: Callable[[], bool], every: float = 0.0) -> None:
    """Look until something holds, as often as can be where `every` is 0 s; the process must not end before."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "the run was over before it could be killed"
        assert time.monotonic() < deadline, "too slow"
        time.sleep(every)


def rows(folder: RunFolder) -> int:
    return len(folder.metrics.read_bytes().splitlines()) if folder.metrics.exists() else 0


def writing(place: Path, name: str) -> Callable[[], bool]:
    """Say whether a file of this name is being written: it has a temporary one."""
    return lambda: any(entry.name.startswith(f".{name}") for entry in os.scandir(place)) if place.exists() else False


def kill_everywhere(total: int, kills: int, seed: int, arguments: list[str]) -> None:
    folder = RunFolder(Path(arguments[arguments.index("--out") + 1]))
    draw = random.Random(seed)
    within = sorted(draw.randrange(total - 1) for _ in range(kills - 6))
    targets = [(row, "") for row in within] + [(draw.randrange(total - 2), "checkpoint") for _ in range(3)]
    order = [*sorted(targets), (total, "model.safetensors"), (total, "summary.json"), (total, "report.html")]
    epoch, until_it_trains = 0.3, 0.5  # seconds; the second is measured below
    for row, writes in order:
        process, begun, before = started(arguments), time.monotonic(), rows(folder)
        if before < row:
            wait_for(process, lambda before=before: rows(folder) > before, every=0.005)
            until_it_trains = time.monotonic() - begun
            wait_for(process, lambda row=row: rows(folder) >= row, every=0.005)
        if writes == "checkpoint":
            wait_for(process, writing(folder.checkpoints, ""))
        elif writes:
            wait_for(process, writing(folder.path, writes))
        elif before < row:
            time.sleep(draw.uniform(0.0, epoch))
        else:  # it is there already: anywhere between its start and the next epoch's end
            time.sleep(draw.uniform(0.0, until_it_trains + epoch))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "the run was over before it could be killed"
        found = {"row": rows(folder), "aimed_at": row, "while_writing": writes, "seconds": time.monotonic() - begun}
        found["left"] = sorted(path.name for path in (*folder.path.glob(".*.tmp"), *folder.checkpoints.glob(".*.tmp")))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    split = sys.argv.index("--")
    kill_everywhere(*(int(number) for number in sys.argv[1:split]), sys.argv[split + 1 :])
