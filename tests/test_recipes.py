"""Named recipes: every network has one in every tier, and whatever the user says wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from prunus.cli.compress import app
from prunus.config import RunConfig, load_config
from prunus.config.recipes import Tier, find_recipe, read_recipes
from prunus.errors import ConfigError
from prunus.models import MODELS
from prunus.sweep import load_sweep

ROOT = Path(__file__).resolve().parent.parent
TIERS = get_args(Tier)


def configure(**values: Any) -> RunConfig:
    return load_config(None, {"model": "resnet20", "data": "digits", "macs": 0.5, **values})


def test_tiers_and_entries() -> None:
    assert tuple(read_recipes()) == TIERS
    for entries in read_recipes().values():
        assert entries[-1]["networks"] == ["*"]
        assert all(set(entry) == {"networks", "source", "settings"} and entry["source"] for entry in entries)
        assert all(set(entry["settings"]) <= set(RunConfig.model_fields) for entry in entries)
        for pattern in (pattern for entry in entries for pattern in entry["networks"]):
            assert any(find_recipe_pattern(pattern, name) for name in MODELS), f"{pattern} names no network"


def find_recipe_pattern(pattern: str, name: str) -> bool:
    return name == pattern or ("*" in pattern and name.startswith(pattern.rstrip("*")))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_network_has_a_recipe_for_both_methods(model: str, tier: str) -> None:
    settings = find_recipe(tier, model)["settings"]
    searched = configure(model=model, recipe=tier, method="layer-fusion")
    assert {key: getattr(searched, key) for key in settings} == settings
    plain = configure(model=model, recipe=tier)
    assert plain.epochs == settings["epochs"]
    assert plain.search_epochs == configure().search_epochs


def test_entries_differ_where_networks_do() -> None:
    assert find_recipe("standard", "vgg16_bn")["settings"]["batch_size"] == 64
    assert find_recipe("standard", "resnet56")["settings"]["learning_rate_schedule"] == "multi-step"
    assert find_recipe("strong", "resnet56")["settings"]["mixup"] == 0.2
    assert find_recipe("strong", "resnet20_pad")["settings"]["cutout"] == 8


def test_the_guide_says_what_the_cpu_recipe_was_measured_to_give() -> None:
    needed = {
        cell.needs
        for cell in load_sweep(ROOT / "reproduce" / "channel_sparsity_cpu.yaml").cells
        if cell.config.model == "resnet20" and cell.config.data != "cifar100" and cell.config.budgets == {"macs": 1.0}
    }
    (dense,) = needed
    course = (ROOT / "results" / "cpu" / "dense" / f"{dense}.jsonl").read_text().splitlines()
    assert len(course) == find_recipe("cpu", "resnet20")["settings"]["epochs"]
    found = 100 * json.loads(course[-1])["val_accuracy"]
    assert f"names {found:.2f} % of the held-out images" in (ROOT / "docs" / "howto" / "training.md").read_text("utf-8")


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: strong\nweight_decay: 0.001\nema: 0.5\n")
    flags = {"model": "vgg16_bn", "data": "digits", "macs": 0.5, "epochs": "50", "ema": "0"}
    config = load_config(file, flags)
    assert (config.weight_decay, config.ema, config.epochs) == (0.001, 0.0, 50)
    assert config.warmup_epochs == 5 * 50 / 200
    assert config.cutout == 16
    assert load_config(_written(config, tmp_path)) == config


def _written(config: RunConfig, folder: Path) -> Path:
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder / "config.yaml"


def test_what_would_do_nothing_is_left_out() -> None:
    scratch = configure(recipe="cpu", method="layer-fusion", from_scratch="true")
    assert scratch.epochs == configure().epochs
    untrained = configure(recipe="strong", checkpoint="dense.safetensors", finetune_epochs="0")
    assert untrained.ema == 0


def test_wrong_words() -> None:
    with pytest.raises(ConfigError, match="--recipe: 'strongest' is none of cpu, standard, strong"):
        configure(recipe="strongest")
    with pytest.raises(ConfigError, match="epochs") as error:
        configure(recipe="cpu", epochs="many")
    assert "warmup" not in str(error.value)
    with pytest.raises(ConfigError, match="--warmup-epochs 5 does not end within --epochs 5: give fewer"):
        configure(epochs=5, warmup_epochs=5)


def test_on_the_command_line() -> None:
    arguments = ["--model", "mobilenetv2", "--data", "digits", "--macs", "0.5", "--recipe", "strong", "--print-config"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert "learning_rate_schedule: cosine\n" in said.output
    assert "mixup: 0.2\n" in said.output
