"""A full disk, a folder that may not be written to and too little memory: one clear message, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from prunus.errors import RunError
from prunus.limits import advice, said_in_words
from tests.test_resume import results

RUN = ["--model", "resnet8", "--data", "digits", "--macs", "0.5", "--threads", "1", "--device", "cpu"]
EPOCHS = ["--epochs", "1", "--finetune-epochs", "1"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
# A user namespace, in which anybody may mount a small file system in memory.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--fork"]


def compress(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "prunus", "compress", *RUN, *map(str, arguments)]


def done(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def only_a_message(finished: subprocess.CompletedProcess[str]) -> str:
    """Check that a command failed by one message, with the exit code of a user's error."""
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("error: ") == 1
    return finished.stderr


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="needs the right to make a user namespace",
)
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A checkpoint of this network takes about 0.65 MB; the second, before the first is dropped, finds no room."""
    small = tmp_path / "small"
    small.mkdir()
    command = " ".join(compress(*EPOCHS, "--out", small / "run"))
    script = f"""
        mount -t tmpfs -o size=1000k none {small}
        {command}; echo "exit code $?"; ls -A {small}/run {small}/run/checkpoints
        mount -o remount,size=50m {small}
        {command} > /dev/null || exit 9
        cp -r {small}/run {tmp_path}/run
    """
    finished = done([*NAMESPACE, "sh", "-c", script])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "exit code 2" in finished.stdout
    assert ".tmp" not in finished.stdout
    assert "Traceback" not in finished.stderr
    said = next(line for line in finished.stderr.splitlines() if line.startswith("error: "))
    assert f"cannot write {small}/run" in said
    assert "No space left on device; the disk is full or a quota is used up: free some space" in said
    done(compress(*EPOCHS, "--out", tmp_path / "whole"))
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_a_folder_that_nobody_may_write_to() -> None:
    said = only_a_message(done(compress(*EPOCHS, "--out", "/proc/prunus")))
    assert "cannot make the run folder /proc/prunus: No such file or directory; choose another with --out" in said


LITTLE_MEMORY = """
import resource, sys, torch
import prunus.pipeline, prunus.cli.compress, prunus.report
torch.set_num_threads(1)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 400_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = ["prunus", *sys.argv[1:]]
prunus.cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_too_little_memory_says_what_needs_less(tmp_path: Path) -> None:
    """The first convolution of a batch asks for 0.5 GB at once: torch can say that it does not get it."""
    for split, count in (("train", 140), ("test", 2)):
        for index in range(count):
            image = Image.new("L", (256, 256), index)
            (tmp_path / "images" / split / "all").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "images" / split / "all" / f"{index}.png")
    out = tmp_path / "run"
    arguments = ["compress", "--model", "resnet8", "--data", tmp_path / "images", "--macs", "0.5", "--threads", "1"]
    arguments += ["--precision", "float32", "--batch-size", "120", "--cache-dir", tmp_path / "cache", "--out", out]
    said = only_a_message(done([sys.executable, "-c", LITTLE_MEMORY, *map(str, arguments)]))
    assert "error: out of memory (" in said
    assert f"What was finished is kept in {out}" in said
    assert "--batch-size 60 --out ANOTHER" in said
    assert (out / "config.yaml").is_file()


def test_what_is_no_matter_of_limits_stays_as_it_is() -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "No such file", "a")):
        with pytest.raises(type(error)) as raised, said_in_words(lambda: "hint"):
            raise error
        assert raised.value is error
    for memory in (MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("CUDA out of memory.")):
        with pytest.raises(RunError, match=r"^out of memory \(.+\)\. hint$"), said_in_words(lambda: "hint"):
            raise memory
    words = "cannot write b: Permission denied; choose a folder that you may write to"
    with pytest.raises(RunError, match=words), said_in_words(lambda: "hint"):
        raise PermissionError(errno.EACCES, "Permission denied", "b")
    assert advice(IsADirectoryError(errno.EISDIR, "Is a directory")) == "free the place or choose another folder"
