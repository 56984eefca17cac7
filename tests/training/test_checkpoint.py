from __future__ import annotations

import dataclasses
import json
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
        "dense.ckpt.prev.safetensors",
        "dense.ckpt.safetensors",
    ]
    previous = checkpoint.parent / "dense.ckpt.prev.safetensors"
    assert [len(header_of(p)["history"]) for p in (previous, checkpoint)] == [1, 2]


def test_a_cut_checkpoint_is_refused_and_the_one_before_goes_on(train: Train, checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(
        FileFormatError,
        match=r"the checkpoint .*dense\.ckpt\.safetensors is cut short .*; delete it to go on from the epoch before, "
        r"in dense\.ckpt\.prev\.safetensors, or delete both to start this training again",
    ):
        train()
    checkpoint.unlink()
    _, resumed = train()
    _, history = train(checkpoint_dir=None)
    assert without_time(resumed) == without_time(history)


def test_without_one_before_the_way_out_is_to_start_again(train: Train, checkpoint: Path) -> None:
    (checkpoint.parent / "dense.ckpt.prev.safetensors").unlink()
    checkpoint.write_bytes(b"")
    with pytest.raises(FileFormatError, match="; delete it to start this training again"):
        train()
    checkpoint.unlink()
    assert len(train()[1]) == 4


def test_a_flipped_bit_is_noticed(train: Train, checkpoint: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    data[-5] ^= 1
    checkpoint.write_bytes(data)
    with pytest.raises(FileFormatError, match="is damaged: its content differs from its checksum"):
        train()


def test_a_killed_write_leaves_the_one_before(train: Train, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        train()
    monkeypatch.undo()
    assert not checkpoint.exists()
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
