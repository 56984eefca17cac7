"""A folder for model hubs: the weights as they are, what others' tools read, and a card with the run's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.deploy.exported import write_digits_run
from tests.report.sample_run import summary
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="prunus", env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    write_digits_run(folder)
    (folder / "summary.json").write_text(json.dumps(summary()))
    return folder


def test_the_folder_of_a_run_can_be_loaded_predicted_with_and_read(run: Path, tmp_path: Path) -> None:
    result = command("export", str(run), "--to", "huggingface")
    assert result.exit_code == 0, result.output
    folder = run / "export" / "huggingface"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    images = torch.randn(2, 1, 8, 8)
    ours, theirs = (prunus.load(place / "model.safetensors") for place in (run, folder))
    assert torch.equal(ours(images), theirs(images))

    config = json.loads((folder / "config.json").read_text())
    data = prunus.load_data("digits")
    assert (config["model_type"], config["input_size"], config["pruned"]) == ("resnet8", [1, 8, 8], True)
    assert config["id2label"] == {str(number): name for number, name in enumerate(data.classes)}
    assert config["label2id"][config["id2label"]["3"]] == 3
    assert config["num_parameters"] == sum(parameter.numel() for parameter in ours.parameters())
    assert tuple(config["mean"]) == data.mean

    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "prunus" and front["pipeline_tag"] == "image-classification"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.8664
    assert "| dense | 87.12 % | 272.5 k | 40.8 M | 1.11 MB |" in card
    assert "| pruned | 86.64 % | 154.3 k | 23.5 M | 639.9 kB |" in card

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert command("predict", str(folder), str(tmp_path / "a.png")).exit_code == 0


def test_a_model_file_has_a_card_without_figures_and_a_name_has_none(run: Path, tmp_path: Path) -> None:
    file = str(run / "model.safetensors")
    assert command("export", file, "--to", "huggingface", "--out", str(tmp_path)).exit_code == 0
    card = (tmp_path / "huggingface" / "README.md").read_text()
    assert "# resnet8, with channels removed" in card and "test accuracy" not in card
    named = command("export", "resnet8", "--to", "huggingface")
    assert named.exit_code == 2 and "takes a run folder or a model file" in named.stderr
