from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.training import Recipe
from prunus.training.compiling import compiled
from prunus.training.hardware import choose_compute
from tests.training.conftest import make_model

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]


def test_where_nothing_can_be_compiled_the_network_trains_as_it_is(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch._dynamo  # noqa: F401  # makes the folder too, and cannot be imported without it

    in_the_way = tmp_path / "a file"
    in_the_way.touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(in_the_way / "no folder"))  # the compiler cannot write
    recipe = Recipe(2, batch_size=16, precision="float32")
    plain, _ = train(recipe=recipe, checkpoint_dir=None)
    assert "--compile" not in capsys.readouterr().err
    fallen_back, _ = train(recipe=recipe, checkpoint_dir=None, compile=True)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("--compile: this network is not compiled, and trains as it is: ")
    assert "a file" in said
    same(plain, fallen_back)


@pytest.mark.slow
def test_a_compiled_training_is_the_same_training(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters  # takes seconds

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    recipe = Recipe(1, batch_size=16, learning_rate=0.01, precision="float32")
    counters.clear()
    plain, before = train(without_dropout(), recipe=recipe, checkpoint_dir=None)
    fast, after = train(without_dropout(), recipe=recipe, checkpoint_dir=None, compile=True)
    assert capsys.readouterr().err == ""
    same(plain, fast, atol=1e-5)
    assert before[0]["loss"] == pytest.approx(after[0]["loss"], rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def without_dropout() -> nn.Module:
    model = make_model()
    model[3] = nn.Identity()  # type: ignore[operator]  # compiled dropout draws other numbers
    return model


def same(one: nn.Module, other: nn.Module, atol: float = 0.0) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor.float(), other.state_dict()[name].float(), rtol=0, atol=atol), name


@pytest.mark.parametrize(("channels", "is_safe"), [(7, False), (16, True)])
def test_the_compiler_keeps_to_the_layout_that_is_safe(
    channels: int, is_safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself it lays convolutions out in channels_last, which oneDNN 6035 makes a crash on some processors."""
    asked: dict[str, Any] = {}

    def compile(function: Callable[[Tensor], Tensor], **how: Any) -> Callable[[Tensor], Tensor]:
        asked.update(how)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    model = nn.Sequential(nn.Conv2d(channels, 4, 1, stride=2), nn.Flatten(), nn.Linear(16, 2))
    images = torch.zeros(4, channels, 4, 4)
    compute = choose_compute(model, "float32", torch.device("cpu"), images)
    assert compiled(model, compute, images) is not model
    assert asked["options"] == {"layout_optimization": is_safe}
