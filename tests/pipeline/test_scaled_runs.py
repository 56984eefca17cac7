"""Photos of several sizes, from training to prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.test_cli import plain, prunus_command

import prunus
from prunus.pipeline.predicting import predict


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark photos; the outer thirds of the wide ones say the opposite of their middle."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        for name, level in (("bright", 200), ("dark", 50)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = ((24, 24), (30, 90), (24, 20))[index % 3]
                pixels = np.clip(random.normal(level, 20, (height, width, 3)), 0, 255)
                if width == 90:
                    pixels[:, :30] = pixels[:, 60:] = 250 - level
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def test_photos_of_several_sizes_are_trained_on_and_told_apart(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["compress", "--model", "resnet8", "--data", str(photos), "--macs", "0.6", "--epochs", "2"]
    command += ["--finetune-epochs", "1", "--batch-size", "20", "--recover", "none", "--threads", "1"]
    command += ["--cache-dir", str(tmp_path / "cache"), "--out", str(run)]
    refused = prunus_command(*command)
    assert refused.exit_code == 2 and "--image-size 224" in plain(refused.stderr)
    scaled = prunus_command(*command, "--image-size", "16")
    assert scaled.exit_code == 0, scaled.output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data"].endswith(", 16×16")
    assert summary["pruned"]["test_accuracy"] > 0.9
    assert prunus.open_exported(run / "model.safetensors").info.input_shape == (3, 16, 16)
    wide = [photos / "test" / name / "1.png" for name in ("bright", "dark")]
    assert [found.classes[0][0] for found in predict(run, wide)] == ["bright", "dark"]
    other = prunus_command(*command, "--image-size", "32")
    assert other.exit_code == 2 and "image_size" in plain(other.stderr)


def test_a_size_out_of_range_is_a_message() -> None:
    wrong = prunus_command(
        "compress", "--model", "resnet8", "--data", "digits", "--macs", "0.5", "--image-size", "2000"
    )
    assert wrong.exit_code == 2
    assert "--image-size: '2000' should be less than or equal to 1024" in plain(wrong.stderr)
