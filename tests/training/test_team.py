from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import ConfigError
from prunus.files import load_tensors
from prunus.training import Recipe
from prunus.training.team import ALONE, Team, join_team
from tests.training.several import SYNCHRONISED, UNEVEN, plain, train, with_batch_norm

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150.0  # seconds that a launch may take on a busy machine


@pytest.mark.parametrize(("count", "size"), [(128, 2), (15, 2), (7, 3), (2, 4)])
def test_parts_make_up_the_whole_and_differ_by_one(count: int, size: int) -> None:
    parts = [Team(rank, size).part(count) for rank in range(size)]
    assert [image for part in parts for image in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_team(cpu=True) == ALONE
    assert ALONE.leads
    assert ALONE.tell({"a": 1}) == {"a": 1}
    assert ALONE.lead(lambda: 5) == 5


def test_without_accelerate_several_processes_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, and .* pip install 'prunus\[distributed\]'"):
        join_team(cpu=True)


def test_batches_too_small_to_share_are_refused() -> None:
    recipe = Recipe(1, batch_size=15, precision="float32", accumulate=3)
    with pytest.raises(ConfigError, match=r"3 processes with 3 piece.* 15 images.* batch_size of 18"):
        train(plain(), recipe, Team(0, 3))


def launch(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(ROOT / "tests" / "training" / "several.py"), str(folder), what],
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE,
    )


def differences(one: Path, other: Path | nn.Module) -> dict[str, float]:
    tensors = load_tensors(one)[0]
    others = other.state_dict() if isinstance(other, nn.Module) else load_tensors(other)[0]
    return {name: float((tensor.double() - others[name].double()).abs().max()) for name, tensor in tensors.items()}


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_where_they_were(tmp_path: Path) -> None:
    done = launch(tmp_path, "whole")
    assert done.returncode == 0, done.stderr
    model = plain()
    history = train(model, UNEVEN)
    for name in ("plain", "pieces"):
        assert max(differences(tmp_path / f"{name}.0.safetensors", model).values()) < 1e-5, name
        loss = float(load_tensors(tmp_path / f"{name}.0.safetensors")[1]["loss"])
        assert loss == pytest.approx(history[-1]["loss"], rel=1e-5)
    model = with_batch_norm()
    train(model, SYNCHRONISED)
    found = differences(tmp_path / "batchnorm.0.safetensors", model)
    assert max(found.values()) < 1e-4, found
    whole = tmp_path / "dropout.0.safetensors"
    for name in ("plain", "pieces", "batchnorm", "dropout"):  # all processes have the same weights, masks among them
        assert max(differences(tmp_path / f"{name}.0.safetensors", tmp_path / f"{name}.1.safetensors").values()) == 0

    done = launch(tmp_path, "killed")
    assert done.returncode != 0
    assert not (tmp_path / "killed.0.safetensors").exists()
    assert (tmp_path / "dense.ckpt.safetensors").exists()
    done = launch(tmp_path, "resumed")
    assert done.returncode == 0, done.stderr
    stopped = [(tmp_path / f"stopped.{rank}").read_text() for rank in range(2)]
    assert stopped == [str(128 + signal.SIGTERM)] * 2
    for name in ("killed", "asked"):
        found = differences(tmp_path / f"{name}.0.safetensors", whole)
        assert max(found.values()) < 1e-5, (name, found)


def test_a_gradient_of_parts_is_that_of_the_whole() -> None:
    """What the test of two processes rests on: it would also pass if nothing were trained."""
    model, start = plain(), plain()
    train(model, UNEVEN)
    assert not torch.allclose(model[0].weight, start[0].weight, atol=1e-2)  # type: ignore[arg-type]
