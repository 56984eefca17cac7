from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import FileFormatError, RunError
from prunus.files import load_tensors, save_tensors
from prunus.training import Recipe
from tests.training.conftest import augment, make_model
from tests.training.test_resume import SoftMask, interrupted_in, without_time

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]


@pytest.fixture
def checkpoint(train: Train, tmp_path: Path) -> Path:
    """The checkpoint of a training that was interrupted in its third epoch."""
    with pytest.raises(KeyboardInterrupt):
        train(augment=interrupted_in(epoch=3, batches=5))
    return tmp_path / "checkpoints" / "dense.ckpt.safetensors"


def header_of(path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(load_tensors(path)[1]["prunus_checkpoint"])
    return header


def rewrite(path: Path, header: Any, change: Callable[[dict[str, Tensor]], None] = lambda tensors: None) -> None:
    tensors, _ = load_tensors(path)
    change(tensors)
    save_tensors(path, tensors, {"prunus_checkpoint": header if isinstance(header, str) else json.dumps(header)})


def test_files(checkpoint: Path) -> None:
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == [
        "dense.ckpt.1.safetensors",
        "dense.ckpt.safetensors",
    ]
    previous = checkpoint.parent / "dense.ckpt.1.safetensors"
    assert [len(header_of(p)["history"]) for p in (previous, checkpoint)] == [1, 2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"is cut short .*"),
        (flip_a_bit, "is damaged: its content differs from its checksum"),
        (lambda path: path.write_bytes(b""), "is cut short .*"),
    ],
)
def test_the_one_before_a_damaged_checkpoint_goes_on(
    train: Train, checkpoint: Path, damage: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint)
    told: list[int] = []
    _, resumed = train(on_epoch=lambda metrics: told.append(metrics["epoch"]))
    goes_on = "going on from the one before"
    pattern = rf"the checkpoint .*dense\.ckpt\.safetensors {said}; {goes_on}, dense\.ckpt\.1\.safetensors\n"
    assert re.fullmatch(pattern, capsys.readouterr().err)
    _, history = train(checkpoint_dir=None)
    assert without_time(resumed) == without_time(history)
    assert told == [1, 2, 3, 4]


def test_where_none_is_sound_the_way_out_is_to_start_again(train: Train, checkpoint: Path) -> None:
    before = checkpoint.with_name("dense.ckpt.1.safetensors")
    cut(before)
    checkpoint.write_bytes(b"")
    with pytest.raises(FileFormatError) as raised:
        train()
    text = str(raised.value)
    assert f"the checkpoint {checkpoint} is cut short" in text and f"the checkpoint {before} is cut short" in text
    assert text.endswith(f"; delete {checkpoint} and {before} to start this training again")
    checkpoint.unlink()
    before.unlink()
    assert len(train()[1]) == 4


def test_as_many_are_kept_as_asked_for(train: Train, tmp_path: Path) -> None:
    train(checkpoints_kept=3)
    names = ("dense.ckpt.safetensors", "dense.ckpt.1.safetensors", "dense.ckpt.2.safetensors")
    assert [len(header_of(tmp_path / "checkpoints" / name)["history"]) for name in names] == [4, 3, 2]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_damaged_checkpoint_hides_no_other_training(train: Train, checkpoint: Path) -> None:
    cut(checkpoint)
    with pytest.raises(FileFormatError, match="another training: seed is 0 there and 1 here"):
        train(seed=1)


def test_a_failed_write_leaves_what_was_there(train: Train, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        train()
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()} == before
    _, resumed = train()
    _, history = train(checkpoint_dir=None)
    assert without_time(resumed) == without_time(history)


def test_another_training(train: Train, checkpoint: Path, recipe: Recipe) -> None:
    before = checkpoint.read_bytes()
    other = dataclasses.replace(recipe, learning_rate=0.5, epochs=5)
    with pytest.raises(
        FileFormatError, match=r"epochs is 4 there and 5 here, learning_rate is 0\.05 there and 0\.5 here"
    ):
        train(recipe=other)
    with pytest.raises(FileFormatError, match="seed is 0 there and 1 here"):
        train(seed=1)
    with pytest.raises(FileFormatError, match="hook is none there and SoftMask here"):
        train(hook=SoftMask())
    assert checkpoint.read_bytes() == before


def test_other_images(train: Train, checkpoint: Path, images: Any) -> None:
    with pytest.raises(FileFormatError, match="training images is 80 there and 79 here"):
        train(data=dataclasses.replace(images, train_labels=images.train_labels[1:]))
    with pytest.raises(FileFormatError, match="labels is "):
        train(data=dataclasses.replace(images, train_labels=images.train_labels.flip(0)))


def test_another_network_is_left_untouched(train: Train, checkpoint: Path) -> None:
    model = make_model()
    model[0] = nn.Conv2d(2, 9, 3, padding=1, bias=False)  # type: ignore[index,operator]
    weight = model[0].weight.detach().clone()  # type: ignore[index,operator,union-attr]
    with pytest.raises(
        FileFormatError, match=r"another network: 0\.weight is \(8, 2, 3, 3\) torch\.float32 there and \(9, "
    ):
        train(model)
    assert torch.equal(model[0].weight, weight)  # type: ignore[index]
    with pytest.raises(FileFormatError, match="another network: only one of the two has extra"):
        larger = make_model()
        larger.register_buffer("extra", torch.zeros(1))
        train(larger)


def test_a_file_that_is_no_checkpoint(train: Train, checkpoint: Path) -> None:
    save_tensors(checkpoint, {"w": torch.ones(1)}, {})
    with pytest.raises(FileFormatError, match="is a safetensors file, but not a checkpoint of Prunus"):
        train()


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, "hello"])
def test_metadata_that_is_not_json(train: Train, checkpoint: Path, text: str) -> None:
    rewrite(checkpoint, text)
    with pytest.raises(FileFormatError, match="metadata that is not JSON"):
        train()


@pytest.mark.parametrize("content", ["[]", "7", "null", "{}", '{"format_version": 2}'])
def test_another_format(train: Train, checkpoint: Path, content: str) -> None:
    rewrite(checkpoint, content)
    with pytest.raises(FileFormatError, match=r"has format .*and this Prunus reads 1"):
        train()


@pytest.mark.parametrize(
    ("entry", "value"),
    [("history", 3), ("history", [3]), ("finished", "perhaps"), ("hook_state", []), ("run", None), ("extra", 1)],
)
def test_entries_of_the_wrong_kind(train: Train, checkpoint: Path, entry: str, value: Any) -> None:
    rewrite(checkpoint, header_of(checkpoint) | {entry: value})
    with pytest.raises(FileFormatError, match=f"bad entry '{entry}"):
        train()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("random/torch"),
        lambda tensors: tensors.update({"random/torch": torch.zeros(3)}),
        lambda tensors: tensors.update({"random/numpy": torch.zeros(3)}),
        lambda tensors: tensors.update({"random/python": torch.zeros(3, 3)}),
        lambda tensors: tensors.update({"random/python": torch.full((625,), -1)}),
    ],
)
def test_random_states_that_do_not_fit(train: Train, checkpoint: Path, change: Callable[[Any], None]) -> None:
    rewrite(checkpoint, header_of(checkpoint), change)
    model = make_model()
    weight = model.state_dict()["0.weight"].clone()
    with pytest.raises(FileFormatError, match="random states that cannot be restored"):
        train(model)
    assert torch.equal(model.state_dict()["0.weight"], weight)


def test_random_entries_that_do_not_fit(train: Train, checkpoint: Path) -> None:
    header = header_of(checkpoint)
    python = header["random"]["python"]
    for bad in (
        {},
        {"numpy": [], "python": python},
        {"numpy": [1, 0, 0.0], "python": 3},
        {"numpy": [10**6, 0, 0.0], "python": python},
    ):
        rewrite(checkpoint, header | {"random": bad})
        with pytest.raises(FileFormatError, match="random states that cannot be restored"):
            train()


def test_momentum_of_an_unknown_parameter(train: Train, checkpoint: Path) -> None:
    rewrite(checkpoint, header_of(checkpoint), lambda tensors: tensors.update({"momentum/x": torch.zeros(1)}))
    with pytest.raises(FileFormatError, match="only one of the two has x"):
        train()


def test_no_folder_no_checkpoint(train: Train, tmp_path: Path) -> None:
    train(checkpoint_dir=None, augment=augment)
    assert not list(tmp_path.rglob("*"))
