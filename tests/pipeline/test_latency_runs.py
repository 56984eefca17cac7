"""A budget of latency through the real command: measured, kept, and gone on from. No clock decides a test."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from prunus import pipeline
from prunus.config import RunConfig, load_config
from prunus.deploy import Latency, formats
from prunus.deploy.layer_times import MeasuredTimes, measure_times
from prunus.errors import BudgetError, ConfigError, FileFormatError
from prunus.pipeline import timing
from prunus.pipeline.run import Run
from prunus.pipeline.timing import say_if_slow
from prunus.plan import PruningPlan
from prunus.report import numbers, read_run
from prunus.report.comparison import int8_text


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 4)):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 255, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def run(images: Path, out: Path, **changes: Any) -> str:
    settings: dict[str, Any] = {
        "model": "resnet8",
        "data": str(images),
        "epochs": 1,
        "finetune_epochs": 0,
        "batch_size": 16,
        "recover": "none",
        "threads": 1,
        "device": "cpu",
        "cache_dir": images.parent / "cache",
    }
    said = io.StringIO()
    config = RunConfig.model_validate({**settings, "out": out, **changes})
    pipeline.compress(config, Console(file=said, width=200))
    return said.getvalue()


@pytest.mark.slow
def test_the_promise_is_measured_and_kept_on_the_network_itself(images: Path, tmp_path: Path) -> None:
    said = run(images, tmp_path / "a", latency=0.9)
    assert "latency    timing layers in ort, 1 thread, one image" in said
    record = json.loads((tmp_path / "a" / "latency.json").read_text())
    plan = PruningPlan.from_json(tmp_path / "a" / "plan.json")
    assert plan.budget == {"latency_ps": record["chosen"]["limit_ps"]}
    assert 0 < plan.after.latency_ps <= record["chosen"]["limit_ps"] < plan.before.latency_ps
    attempts = record["chosen"]["attempts"]
    chosen = record["chosen"]["share_of_the_promise"]
    assert chosen in [attempt["share_of_the_promise"] for attempt in attempts]
    # The next try asks for less where one takes too long, and for more where one is too quick.
    for earlier, later in itertools.pairwise(attempts):
        assert (later["limit_ps"] < earlier["limit_ps"]) == (0.98 / earlier["share_of_the_promise"] < 1)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())["latency_budget"]
    assert summary["runtime"].startswith("ONNX Runtime")
    assert summary["promised_ms"] == pytest.approx(0.9 * summary["dense_ms"], rel=1e-3)
    assert summary["measured_ms"] > 0

    # Another run has the table from the cache, and the other method and a second budget go with it.
    changes = {"method": "layer-fusion", "search_epochs": 2, "remove_after": 1, "round_to": "auto"}
    said = run(images, tmp_path / "b", latency=1.0, macs=0.7, **changes)
    again = json.loads((tmp_path / "b" / "latency.json").read_text())
    assert again["times"] == record["times"]
    fusion = PruningPlan.from_json(tmp_path / "b" / "plan.json")
    assert fusion.after.latency_ps <= again["chosen"]["limit_ps"]
    assert fusion.after.macs <= 0.7 * fusion.before.macs
    multiple = record["times"]["multiple"]
    assert f"latency    widths in multiples of {multiple}" in said
    assert all(len(group.keep) % multiple == 0 or len(group.keep) == group.size for group in fusion.groups)


@pytest.mark.slow
def test_a_table_that_says_too_much_of_small_networks_is_not_believed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*args: Any, **options: Any) -> MeasuredTimes:
        found = measure_times(*args, **options)
        name, first = next(iter(found.times.items()))
        inflated = dataclasses.replace(first, constant=first.constant + 10**12)  # a second, whatever the widths
        return dataclasses.replace(found, times={**found.times, name: inflated})

    monkeypatch.setattr(timing, "measure_times", too_much)
    said = run(images, tmp_path / "a", latency=0.95)
    assert "by the table no network is so quick, but the smallest is" in said
    record = json.loads((tmp_path / "a" / "latency.json").read_text())
    assert record["chosen"]["share_of_the_promise"] <= 1.03
    plan = PruningPlan.from_json(tmp_path / "a" / "plan.json")
    assert plan.after.latency_ps > 0.95 * plan.before.latency_ps and plan.after.macs < plan.before.macs


@pytest.mark.slow
def test_a_branch_that_was_left_out_takes_no_time(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "a", latency=0.8, drop_branches=1)
    record = json.loads((tmp_path / "a" / "latency.json").read_text())
    assert record["chosen"]["share_of_the_promise"] <= 1.03
    plan = PruningPlan.from_json(tmp_path / "a" / "plan.json")
    assert 0 < plan.after.latency_ps < 0.9 * plan.before.latency_ps
    (gone,) = json.loads((tmp_path / "a" / "branches.json").read_text())["branches"]
    assert [len(group.keep) for group in plan.groups if group.name == gone["name"]] == [1]


@pytest.mark.slow
def test_layers_are_timed_for_any_budget(images: Path, tmp_path: Path) -> None:
    said = run(images, tmp_path / "a", macs=0.8, round_to="auto", normalize="latency")
    assert "latency    timing layers in ort, 1 thread, one image" in said
    record = json.loads((tmp_path / "a" / "latency.json").read_text())
    multiple = record["times"]["multiple"]
    assert record["chosen"] is None
    plan = PruningPlan.from_json(tmp_path / "a" / "plan.json")
    assert plan.budget == {"macs": 0.8}
    assert all(len(group.keep) % multiple == 0 or len(group.keep) == group.size for group in plan.groups)
    assert 0 < plan.after.latency_ps < plan.before.latency_ps
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["latency_budget"] == {} and summary["latency"]["dense"]["runtime"].startswith("ONNX Runtime")


@pytest.mark.parametrize(
    ("changes", "macs", "small_ms", "expected"),
    [
        (
            {},
            0.4,
            1.8,
            "note       60% of the MACs went, but little of the time: 1.80 ms for one image in X 1, dense 2.00 ms",
        ),
        ({}, 0.4, 1.3, ""),  # more than half of what went became time
        ({}, 1.0, 2.1, ""),  # nothing went
        ({"round_to": 8}, 0.4, 1.8, ""),
        ({"latency": 0.9}, 0.4, 1.8, ""),
    ],
)
def test_it_is_said_where_macs_did_not_become_time(
    changes: dict[str, Any], macs: float, small_ms: float, expected: str
) -> None:
    said: list[str] = []
    config = RunConfig.model_validate({"model": "resnet8", "data": "digits", "macs": 0.4} | changes)
    stand_in = SimpleNamespace(config=config, say=said.append)
    taken = {
        name: Latency(took, took, took, 1, 1, 1, "X 1", "a processor")
        for name, took in (("dense", 2.0), ("pruned", small_ms))
    }
    say_if_slow(cast(Run, stand_in), taken, macs)
    assert "".join(said).startswith(expected) and bool(said) == bool(expected)
    assert not said or said[0].endswith("--drop-branches takes whole layers out")


def test_the_summary_has_the_latency_of_the_runtime_asked_for(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "a", macs=0.5, runtime="ort", int8=True)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["latency"].keys() == {"dense", "pruned", "int8"}
    assert all(one["runtime"].startswith("ONNX Runtime") for one in summary["latency"].values())
    taken = {name: one["median_ms"] for name, one in summary["latency"].items()}
    told = summary["dense"]["latency_ms"], summary["pruned"]["latency_ms"], summary["int8"]["latency_ms"]
    assert told == tuple(taken[name] for name in ("dense", "pruned", "int8")) and min(told) > 0
    assert summary["latency_budget"] == {}
    assert f", {numbers.milliseconds(taken['int8'])};" in int8_text(read_run(tmp_path / "a").summary)


def test_a_runtime_that_is_not_here_is_said_before_any_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "ncnn" else object())
    with pytest.raises(ConfigError, match=r"needs ncnn, not installed here: pip install 'prunus\[ncnn\]'"):
        run(images, tmp_path / "a", macs=0.5, runtime="ncnn")
    assert not (tmp_path / "a" / "metrics.jsonl").read_text()


def test_what_cannot_be(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BudgetError, match=r"^0\.01 of .*s of latency is not reachable: .* Timed beside the dense one, "
    ):
        run(images, tmp_path / "a", latency=0.01)
    record = tmp_path / "a" / "latency.json"
    record.write_text('{"times": {}, "chosen": null}')
    with pytest.raises(FileFormatError, match=r"lacks something or is mistyped.*delete it to measure again"):
        run(images, tmp_path / "a", latency=0.01)
    # Another network in a folder without results does not meet the times of the first.
    with pytest.raises(BudgetError, match=r"^0\.01 of .*s of latency is not reachable: "):
        run(images, tmp_path / "a", latency=0.01, model="resnet8_pad", runtime="torch")
    assert json.loads(record.read_text())["times"]["runtime"].startswith("PyTorch")
    given = {"model": "resnet20", "data": "digits"}
    for changes, message in (
        ({"latency": "2"}, "without a unit"),
        ({"macs": "0.5", "round_to": "0"}, "is neither a whole number from 1 to 1024 nor auto"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(None, given | changes)
