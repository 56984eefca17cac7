"""A run that is watched: the page says how far it is, is written again when it got further, and ends as the report."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.faults import accessibility_faults
from tests.report.sample_run import metrics, write_run
from typer.testing import CliRunner

from prunus.cli import app
from prunus.errors import RunError
from prunus.report import live
from prunus.report.live import follow_report, render_live

Open = Callable[..., Any]
CONFIG = "model: resnet20\ndata: cifar10\nmethod: layer-fusion\nepochs: 12\nsearch_epochs: 8\nfinetune_epochs: 6\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run after three of its epochs."""
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").rename(tmp_path / "summary.json")
    (folder / "config.yaml").write_text(CONFIG)
    advance(folder, 3)
    return folder


def advance(folder: Path, epochs: int) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()[:epochs]))


def finish(folder: Path) -> None:
    (folder.parent / "summary.json").rename(folder / "summary.json")


def cards(page: str) -> list[str]:
    found = re.findall(r'<div class="card">(.*?)</p>\s*</?(?:div|p class="label")', page, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", card)).split()) for card in found]


def test_the_page_follows_the_run_and_ends_as_its_report(run: Path) -> None:
    steps: list[Callable[[], object]] = [
        lambda: None,  # nothing new: nothing is written
        lambda: advance(run, 15),
        lambda: finish(run),
    ]
    pages: list[str] = []
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        steps.pop(0)()

    page = follow_report([run], seconds=0.5, wait=wait, written=lambda path: pages.append(path.read_text()))
    assert page == run / "report.html" and waits == [0.5] * 3 and len(pages) == 3
    assert "stage dense training" in cards(pages[0])
    assert "dense training 3 of 12 epochs" in cards(pages[0]) and "search 0 of 8 epochs" in cards(pages[0])
    assert "stage search" in cards(pages[1]) and "search 3 of 8 epochs" in cards(pages[1])
    assert 'id="chart-search"' not in pages[0] and 'id="chart-search"' in pages[1]
    assert all("data-reload" in live_page for live_page in pages[:2])
    assert "87.12 %" in pages[2] and "data-reload" not in pages[2]


def test_a_stage_that_was_skipped_is_not_waited_for(run: Path) -> None:
    rows = [{"stage": "finetune", "epoch": 1, "val_accuracy": 0.5, "seconds": 2.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = render_live([run])
    assert "fine-tuning 1 of 6 epochs" in cards(page)
    assert not [card for card in cards(page) if card.startswith("dense training")]


def test_a_run_before_its_first_epoch_has_a_page_and_none_at_all_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    (run / "environment.json").unlink()
    page = render_live([run])
    assert "stage before the first epoch" in cards(page) and 'id="chart-' not in page
    with pytest.raises(RunError, match=r"there is no run in .*nothing .no config.yaml"):
        follow_report([tmp_path / "nothing"], wait=lambda seconds: None)


def test_an_open_page_loads_itself_again(run: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "report.html"
    monkeypatch.setattr(live, "RELOAD", 600)  # not while axe looks at it
    path.write_text(render_live([run]))
    page = open_page(path, width=390, height=844)
    page.wait_for_selector("html[data-charts='2']")
    assert accessibility_faults(page) == []
    monkeypatch.setattr(live, "RELOAD", 5)
    path.write_text(render_live([run]))
    page.reload()
    advance(run, 9)
    path.write_text(render_live([run]))
    page.wait_for_selector(".card >> text=9")
    finish(run)
    follow_report([run], wait=lambda seconds: None)
    page.wait_for_selector("h2 >> text=Verification")


def test_the_command_follows_to_the_end(run: Path) -> None:
    finish(run)
    done = CliRunner().invoke(app, ["report", str(run), "--follow"])
    assert done.exit_code == 0 and done.stdout == f"{run / 'report.html'}\n"
    assert f"following in {run / 'report.html'}; Ctrl-C ends this, and not the runs" in done.stderr
