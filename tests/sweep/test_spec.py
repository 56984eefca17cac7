"""sweep.yaml: cells from a grid, their names, and everything that is wrong at once."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from prunus.config import MAY_CHANGE, RunConfig
from prunus.config.running_fields import RunningFields
from prunus.config.training_fields import TrainingFields
from prunus.config.what_fields import WhatFields
from prunus.errors import ConfigError
from prunus.pipeline import recipes
from prunus.sweep import load_sweep
from prunus.sweep.cells import DENSE_KEYS, dense_job, make_cell

BASE = "base: {model: resnet8, data: digits, epochs: 1}\n"
AFTER_THE_DENSE = {
    "recipe",  # says nothing but other settings
    "search_epochs",
    "sparse_epochs",
    "from_scratch",
    "remove_after",
    "finetune_epochs",
    "finetune_learning_rate",
    "distill",
    "temperature",
    "reinitialize",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"model": "resnet8", "data": "digits", "macs": 0.5} | changes)


def test_a_grid_is_every_combination_and_a_list_of_grids_all_of_them(tmp_path: Path) -> None:
    text = BASE + (
        "grid:\n  - {macs: [0.3, 0.5], seed: [0, 1], method: channel-sparsity}\n"
        "  - {macs: 0.5, method: layer-fusion, search_epochs: [1, 2]}\njobs: 3\n"
    )
    sweep = load_sweep(written(tmp_path, text), {"jobs": None, "retries": 4})
    assert (sweep.jobs, sweep.retries, sweep.executor, sweep.folder) == (3, 4, "local", Path("runs/sweep"))
    found = [(cell.config.macs, cell.config.seed, cell.config.method, cell.config.epochs) for cell in sweep.cells]
    assert found[:4] == [(macs, seed, "channel-sparsity", 1) for macs in (0.3, 0.5) for seed in (0, 1)]
    assert [cell.config.search_epochs for cell in sweep.cells[4:]] == [1, 2]
    assert len({cell.name for cell in sweep.cells}) == 6
    assert sweep.cells[0].name.startswith("macs-0.3_seed-0_method-channel-sparsity-")


def test_the_same_settings_twice_are_one_cell(tmp_path: Path) -> None:
    sweep = load_sweep(written(tmp_path, BASE + "grid: [{macs: [0.5, 0.5]}, {macs: 0.5, seed: 0}]"))
    assert len(sweep.cells) == 1


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, BASE.replace("epochs", "epoch") + "grid: {mac: [0.5], seed: [], out: [a]}\n")
    with pytest.raises(ConfigError) as error:
        load_sweep(path)
    text = str(error.value)
    for line in (
        "epoch is no option; did you mean epochs?",
        "mac is no option; did you mean macs?",
        "seed has no values; type e.g. seed: [0]",
        "out cannot be set: every cell has a folder of its own in the sweep's",
    ):
        assert line in text, text


def test_a_wrong_key_of_the_sweep_itself_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_sweep(written(tmp_path, BASE + "grids: {macs: [0.5]}\njobs: many\nexecutor: loacl\n"))
    text = str(error.value)
    assert "grids" in text and "did you mean grid?" in text
    assert "'many' is not a whole number" in text and "did you mean local?" in text


def test_a_cell_that_cannot_be_is_named_before_anything_starts(tmp_path: Path) -> None:
    path = written(
        tmp_path, BASE + "grid: {macs: [0.5, 7.5], method: [channel-sparsity, layer-fusion], rounds: [3, 5]}"
    )
    with pytest.raises(ConfigError) as error:
        load_sweep(path)
    text = str(error.value)
    assert "(cell macs 7.5, method channel-sparsity, rounds 3, and 3 more)" in text
    assert "--rounds 5 does nothing here: it is for schedule iterative" in text


def test_a_network_or_a_criterion_that_is_none_is_named_as_well(tmp_path: Path) -> None:
    text = BASE.replace("resnet8", "resnet9") + "grid: {macs: 0.5, criterion: [l1_norm, l1_nrom]}"
    with pytest.raises(ConfigError) as error:
        load_sweep(written(tmp_path, text))
    assert "there is no model named resnet9; did you mean resnet8?" in str(error.value)
    assert "there is no criterion 'l1_nrom'; did you mean 'l1_norm'?" in str(error.value)


def test_without_a_grid_the_message_shows_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no grid and no search .* write e\.g\. grid: \{macs"):
        load_sweep(written(tmp_path, BASE))


def test_a_name_is_of_the_settings_alone() -> None:
    name = make_cell(config(), {"macs": 0.5}).name
    assert make_cell(config(threads=2, device="cpu", out="a"), {"macs": 0.5}).name == name
    assert make_cell(config(finetune_epochs=2), {"macs": 0.5}).name != name
    odd = make_cell(config(data="a/b c.zip", checkpoint="x/y.safetensors"), {"data": "a/b c.zip"}).name
    assert "/" not in odd and " " not in odd


def test_cells_that_train_alike_share_a_dense_network() -> None:
    first = make_cell(config(), {})
    for same in (config(macs=0.2), config(method="layer-fusion"), config(finetune_epochs=3), config(distill=0.5)):
        assert make_cell(same, {}).needs == first.needs
    for other in (config(seed=1), config(epochs=2), config(ema=0.9), config(validation=0.2), config(model="resnet20")):
        assert make_cell(other, {}).needs not in (first.needs, None)
    assert make_cell(config(checkpoint="dense.safetensors"), {}).needs is None
    assert make_cell(config(method="layer-fusion", from_scratch=True), {}).needs is None
    trained = dense_job(make_cell(config(recipe="cpu", seed=3), {})).config
    wanted = config(recipe="cpu", seed=3)
    assert {key: getattr(trained, key) for key in DENSE_KEYS} == {key: getattr(wanted, key) for key in DENSE_KEYS}


def test_no_setting_of_the_dense_training_is_left_out() -> None:
    """What the recipe of the dense training reads is a key; every field of the training is one, or comes after it."""
    read = {
        node.attr
        for function in (recipes.dense, recipes._shared)
        for node in ast.walk(ast.parse(inspect.getsource(function)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
    }
    assert {"epochs", "batch_size", "ema"} < read <= set(DENSE_KEYS)
    assert set(TrainingFields.model_fields) == (set(DENSE_KEYS) & set(TrainingFields.model_fields)) | AFTER_THE_DENSE
    assert not AFTER_THE_DENSE & set(DENSE_KEYS)
    assert set(RunningFields.model_fields) <= set(DENSE_KEYS) | MAY_CHANGE | {"runtime"}  # of latency
    assert set(WhatFields.model_fields) <= set(DENSE_KEYS) | MAY_CHANGE | {"method", "checkpoint"}


@pytest.mark.parametrize(("number", "cells", "trainings"), [(0, 12, 2), (1, 8, 1), (2, 20, 0), (3, 8, 4)])
def test_the_examples_of_the_page_can_be_used(number: int, cells: int, trainings: int, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "sweep.md").read_text("utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    sweep = load_sweep(written(tmp_path, examples[number]))
    assert sweep.total == cells
    assert len({cell.needs for cell in sweep.cells}) == trainings


def test_a_search_is_checked_as_a_whole(tmp_path: Path) -> None:
    text = BASE + "executor: ray\ndevices: [cuda:0]\nray: {gpu: 1}\nsearch:\n  objectives: [acuracy]\n  space:\n"
    text += "    macs: {low: 0.5, high: 0.2}\n    seed: {low: a, high: 2}\n    rounds: 3\n"
    text += "    ema: {low: 0, high: 0.9, log: true}\n"
    with pytest.raises(ConfigError) as error:
        load_sweep(written(tmp_path, text))
    for line in (
        "objectives: 'acuracy' is none of accuracy, macs, size_bytes, params",
        "macs: low 0.5 is not below high 0.2",
        "seed: low, high and step are numbers",
        "rounds is neither a list such as [a, b] nor a range",
        "ema: with log, low is above 0",
        "devices (in ",
        "gpu (in ray in ",
    ):
        assert line in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("{space: {mac: {low: 0.2, high: 0.5}}}", "mac is no option; did you mean macs?"),
        ("{space: {macs: {low: 0.2, high: 7.5}}}", "(cell macs 7.5)"),
        ("{space: {macs: [0.5], rounds: [3, 4]}}", "--rounds 4 does nothing here"),
        ("{trials: 3}", "space is missing"),
        ("{space: {macs: [0.5]}, trial: 3}", "did you mean trials?"),
    ],
)
def test_what_is_wrong_in_a_space_is_said(search: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_sweep(written(tmp_path, f"{BASE}search: {search}\n"))


def test_a_grid_and_a_search_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a grid and a search"):
        load_sweep(written(tmp_path, f"{BASE}grid: {{macs: [0.5]}}\nsearch: {{space: {{macs: [0.5]}}}}"))
