"""The page: complete, self-contained, safe against what a folder holds, and alive in a browser."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.report.sample_run import LAYERS, metrics, summary, write_run

from prunus.report import print_summary, read_run, write_report
from prunus.report.comparison import compare
from prunus.report.figures import accuracy_chart, decades, loss_chart, sparsity_chart, widths_chart
from prunus.report.search_figures import search_chart

Open = Callable[..., Any]


def own_part(page: str) -> str:
    """The page without Plotly's source."""
    return re.sub(r'<script id="plotly".*?</script>', "", page, flags=re.DOTALL)


def test_the_page_holds_what_a_reader_wants(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = re.sub("</?span[^>]*>", "", html.unescape(own_part(path.read_text())))
    for text in (
        "resnet20 on CIFAR-10 (JPEG)",
        "87.12 %",
        "86.64 %",
        "−0.48 points",
        "639.9 kB",
        "1.74× smaller",
        "1.45× as fast",
        "median of 100 calls, batch 1, 1 thread, PyTorch 2.13, X1",
        "fine-tuning",
        "On the held-out images, before any training: removed 11.64 %, reconstruct 80.02 %.",
        "3.1e-15",
        "passed",
        "prunus compress --config",
        "0123abc",
        "size: 0.64MB",
        LAYERS[-1],
    ):
        assert text in page, text


def test_several_removals_are_numbered_and_none_is_not_spoken_of(tmp_path: Path) -> None:
    rows = [{"removal": number, "step": "removed", "val_accuracy": number / 10} for number in (1, 2)]
    page = own_part(write_report(write_run(tmp_path / "a", recovery=rows)).read_text())
    assert "before any training, removal 1: removed 10.00 %." in page
    assert "before any training, removal 2: removed 20.00 %." in page
    assert "before any training" not in own_part(write_report(write_run(tmp_path / "b", recovery=[])).read_text())


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run")).read_text()
    packed = re.findall(r'<script id="plotly" type="text/plain">(.*?)</script>', page)
    assert len(packed) == 1 and b"plotly.js v" in gzip.decompress(base64.b64decode(packed[0]))[:200]
    own = own_part(page)
    assert len(own) < 60_000
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://""", own)
    assert "default-src 'none'" in own


def test_text_from_the_folder_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    widths = [{"layer": evil, "before": 4, "after": 2}]
    run = write_run(
        tmp_path / "run", model=evil, data=evil, method=evil, budget={evil: evil}, widths=widths, commit=evil
    )
    (run / "environment.json").write_text(json.dumps({evil: evil, "command": evil}))
    (run / "verification.json").write_text(json.dumps({"passed": False, evil: evil}))
    (run / "config.yaml").write_text(evil)
    (run / "plan.json").write_text(json.dumps({"notes": [evil]}))
    (run / "metrics.jsonl").write_text(json.dumps({"stage": evil, "epoch": 0, "val_accuracy": 0.5}) + "\n")
    page = write_report(run).read_text()
    assert "<script>alert" not in page
    assert "<img" not in own_part(page)
    assert "not passed" in page


def test_the_typed_command_is_shown_without_where_the_program_lay(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "environment.json").write_text(json.dumps({"command": "/home/me/.venv/bin/prunus compress --macs 0.5"}))
    page = write_report(run).read_text()
    assert "<code>prunus compress --macs 0.5</code>" in re.sub("</?span[^>]*>", "", page)
    assert '<span class="word">--macs</span>' in page, "lines end between words"


def test_curves_join_the_stages_and_break_between_them(tmp_path: Path) -> None:
    chart = accuracy_chart(read_run(write_run(tmp_path / "run")).stages)
    assert chart
    validation, training = chart["data"]
    epochs = [epoch for epoch in validation["x"] if epoch is not None]
    assert epochs == list(range(1, 27))
    assert [index for index, epoch in enumerate(validation["x"]) if epoch is None] == [12, 21, 28]
    assert validation["y"][0] == pytest.approx(100 * metrics()[0]["val_accuracy"])
    assert training["y"][0] == pytest.approx(100 * metrics()[0]["train_accuracy"])
    assert [note["text"] for note in chart["layout"]["annotations"]] == ["dense training", "search", "fine-tuning"]
    assert chart["layout"]["shapes"][0] | {"x0": 12.5, "x1": 20.5} == chart["layout"]["shapes"][0]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.06, 4.0, "0.01 0.02 0.05 0.1 0.2 0.5 1 2 5 10 20 50"),
        (0.06, 48.0, "0.01 0.1 1 10 100"),
        (1e-7, 5e6, "1e-07 1e-05 0.001 0.1 10 1000 100000 1e+07"),
    ],
)
def test_labels_of_a_logarithmic_axis_are_plain_numbers(low: float, high: float, labels: str) -> None:
    axis = decades(low, high)
    assert axis["ticktext"] == labels.split()
    assert axis["tickvals"] == pytest.approx([float(label) for label in labels.split()])
    assert axis["type"] == "log"


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis() -> None:
    def axis(*losses: float) -> dict[str, Any]:
        chart = loss_chart({"dense": [{"loss": loss, "val_loss": loss} for loss in losses]})
        assert chart
        found: dict[str, Any] = chart["layout"]["yaxis"]
        return found

    assert axis(50.0, 0.1)["ticktext"] == ["0.1", "1", "10", "100"]
    assert "type" not in axis(2.3, 0.1) and "type" not in axis(50.0, 0.0)


@pytest.mark.parametrize(("width", "numbered"), [(1280, 16), (390, 8)])
def test_numbers_of_epochs_stand_upright_and_apart(tmp_path: Path, open_page: Open, width: int, numbered: int) -> None:
    run = write_run(tmp_path / "run")
    stages = (("dense", 6), ("search", 6), ("finetune", 4))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(stages)))
    page = open_page(write_report(run), width=width, height=844)
    page.wait_for_selector("html[data-charts='5']")
    boxes = """() => [...document.querySelectorAll("#chart-accuracy .xtick text")].map((text) => {
      const { left, right, top, bottom } = text.getBoundingClientRect();
      return [text.textContent, left, right, bottom - top];
    })"""
    found = page.evaluate(boxes)
    step = 16 // numbered
    assert [text for text, *_ in found] == [str(epoch) for epoch in range(step, 17, step)]
    assert all(height < 20 for *_, height in found)
    assert all(here[2] + 2 < there[1] for here, there in pairwise(found))


def test_options_that_were_chosen_are_shown(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", options={"degree": "weight", "t": 0.2})).read_text()
    assert "degree weight, t 0.2</td>" in page
    assert "options chosen" not in own_part(write_report(write_run(tmp_path / "plain")).read_text())


def test_the_sparsity_index_is_drawn_before_and_after_sparse_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert sparsity_chart(read_run(run).stages) is None
    stages = (("dense", 2), ("sparse", 3), ("finetune", 1))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(stages)))
    chart = sparsity_chart(read_run(run).stages)
    assert chart
    after, before = chart["data"]
    assert before["y"] == [600, 80, 20, 0] and after["y"] == [400, 80, 20, 200]
    assert before["x"] == after["x"] == [0.125, 0.375, 0.625, 0.875] and after["width"] == 0.25
    assert chart["layout"]["xaxis"]["range"] == [0, 1], "as far as there are channels"
    page = write_report(run).read_text()
    assert 'id="chart-sparsity"' in page and "sparse training" in own_part(page)


def searched(folder: Path) -> dict[str, Any] | None:
    run = read_run(folder)
    return search_chart(run.metrics, run.summary.dense.macs)


def test_the_search_is_drawn_where_there_was_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    chart = searched(run)
    assert chart
    kept, returned, masked, removed, macs, trained = (trace["y"] for trace in chart["data"])
    assert returned[0] == pytest.approx(100 * 3 / 700)
    assert kept[0] == pytest.approx(100 * 697 / 700)
    assert (round(kept[-1] + returned[-1]), round(masked[-1]), round(removed[-1])) == (60, 35, 5)
    assert (round(macs[-1]), round(trained[-1])) == (36, 90)
    assert all(sum(parts) == pytest.approx(100) for parts in zip(kept, returned, masked, removed, strict=True))
    page = write_report(run).read_text()
    assert (
        "Of 700 channels 9 came back at some time; the last epoch kept 420, 7 of which had been masked before." in page
    )
    still = [row | {"returned_channels_ever": 0, "kept_once_masked": 0} for row in metrics((("search", 2),))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in still))
    assert "None of the 700 channels came back; the last epoch kept 563." in write_report(run).read_text()
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics((("dense", 2),))))
    assert searched(run) is None


def test_a_run_from_scratch_has_no_dense_accuracy(tmp_path: Path) -> None:
    dense = summary()["dense"] | {"test_accuracy": None}
    run = write_run(tmp_path / "run", dense=dense)
    page = write_report(run).read_text()
    assert "trained from scratch, 86.64 % after" in " ".join(page.split())
    row = compare(read_run(run).summary)[0]
    assert (row.dense, row.pruned, row.gain) == ("–", "86.64 %", "from scratch")


def test_every_layer_has_its_two_bars(tmp_path: Path) -> None:
    widths = read_run(write_run(tmp_path / "run")).summary.widths
    chart = widths_chart(widths)
    assert chart
    before, after = chart["data"]
    assert before["x"] == after["x"] == LAYERS
    assert before["y"] == [width.before for width in widths]
    assert after["y"] == [width.after for width in widths]


def test_a_run_without_curves_widths_and_latency_still_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", widths=[], latency={})
    data = json.loads((run / "summary.json").read_text())
    data["dense"]["latency_ms"] = data["pruned"]["latency_ms"] = None
    (run / "summary.json").write_text(json.dumps(data))
    (run / "metrics.jsonl").write_text("")
    page = own_part(write_report(run).read_text())
    assert "Learning curves" not in page
    assert "Widths" not in page
    assert "Latency" not in page


def test_the_terminal_gets_table_and_paths(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(run)
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_summary(run, console)
    console.file.close()
    text = console.export_text()
    for part in ("87.12 %", "86.64 %", "639.9 kB", "23.5 M", "1.62 ms", str(run / "report.html")):
        assert part in text.replace("\n", " ") or part in text, part
    assert "dense.safetensors" not in text  # it is not there


@pytest.mark.skipif(shutil.which("chromium") is None, reason="looks at the page in Chromium, which is not on the PATH")
def test_a_browser_draws_the_charts_without_a_complaint(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    assert 'data-charts="5"' in done.stdout
    assert done.stdout.count('class="main-svg"') >= 5
    bars = re.findall(r'<g class="point">', done.stdout)
    assert len(bars) == 2 * len(LAYERS) + 4 * 8  # and the fates of the channels in eight epochs of the search
