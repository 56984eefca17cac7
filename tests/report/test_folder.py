"""Run folders are read as they are, or refused with the file's name and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.sample_run import metrics, summary, write_run

from prunus.errors import FileFormatError
from prunus.report import read_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_run_is_read_whole(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.summary.pruned.size_bytes == 639872
    assert run.summary.budget_text == "size 0.64MB"
    assert {stage: len(rows) for stage, rows in run.stages.items()} == {"dense": 12, "search": 8, "finetune": 6}
    assert run.config_text.startswith("model: resnet20")


def test_an_epoch_that_was_run_again_counts_once(run_dir: Path) -> None:
    rows = metrics((("dense", 3),))
    again = {**rows[1], "val_accuracy": 0.5}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, again]))
    dense = read_run(run_dir).stages["dense"]
    assert [row["epoch"] for row in dense] == [1, 2, 3]
    assert dense[1]["val_accuracy"] == 0.5


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.jsonl", "plan.json", "verification.json", "environment.json", "config.yaml"]
)
def test_a_missing_file_is_named(run_dir: Path, name: str) -> None:
    (run_dir / name).unlink()
    with pytest.raises(FileFormatError, match=name):
        read_run(run_dir)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("summary.json", '{"data": "x"', "not valid JSON"),
        ("summary.json", "[]", "does not fit"),
        ("summary.json", json.dumps(summary() | {"dense": {"params": 1}}), r"dense\.test_accuracy"),
        (
            "summary.json",
            json.dumps(summary() | {"widths": [{"layer": "a", "before": 0, "after": 0}]}),
            "widths.0.before",
        ),
        ("metrics.jsonl", '{"stage": "dense", "epoch": 0}\n{"stage": "den', "line 2"),
        ("metrics.jsonl", "[" * 100_000, "line 1"),
        ("metrics.jsonl", "3\n", "line 1"),
        ("verification.json", "[1]", "holds a list"),
        ("config.yaml", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_broken_file_is_one_clear_error(run_dir: Path, name: str, content: str | bytes, says: str) -> None:
    (run_dir / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileFormatError, match=says) as caught:
        read_run(run_dir)
    assert str(run_dir / name) in str(caught.value)
