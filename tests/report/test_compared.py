"""Several runs on one page: named apart, drawn together, each to be opened; and the command that writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.faults import accessibility_faults
from tests.report.sample_run import LAYERS, summary, write_run
from typer.testing import CliRunner

from prunus.cli import app
from prunus.errors import FileFormatError
from prunus.report import read_run, write_report
from prunus.report.fronts import front_chart, shares_chart
from prunus.report.page import names_of

Open = Callable[..., Any]


def small(accuracy: float, size_bytes: int) -> dict[str, Any]:
    return summary()["pruned"] | {"test_accuracy": accuracy, "size_bytes": size_bytes}


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / name, pruned=small(accuracy, size))
        for name, accuracy, size in (("half", 0.8664, 640000), ("third", 0.8500, 400000), ("worse", 0.8400, 500000))
    ]


def test_the_front_joins_what_no_cheaper_network_reaches(three: list[Path]) -> None:
    chart = front_chart({path.name: read_run(path) for path in three})
    assert chart and [variant["label"] for variant in chart["variants"]] == ["bytes", "MACs", "parameters", "latency"]
    front, *runs = chart["variants"][0]["data"]
    assert (front["x"], front["y"]) == ([400000, 640000, 1113000], pytest.approx([85.0, 86.64, 87.12]))
    assert runs[2]["x"] == [1113000, 500000] and runs[2]["y"] == pytest.approx([87.12, 84.0])
    low, high = chart["variants"][0]["layout"]["yaxis"]["range"]
    assert low < 84.0 and high > 87.12


def test_a_cost_that_one_network_lacks_is_not_offered(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", pruned=small(0.8, 1) | {"latency_ms": None}))
    chart = front_chart({"run": run})
    assert chart and [variant["label"] for variant in chart["variants"]] == ["bytes", "MACs", "parameters"]


def test_shares_are_drawn_where_the_layers_are_the_same(tmp_path: Path) -> None:
    widths = [{"layer": "other", "before": 8, "after": 2}]
    first, other = (read_run(path) for path in (write_run(tmp_path / "a"), write_run(tmp_path / "b", widths=widths)))
    chart = shares_chart({"a": first, "again": first})
    assert chart and chart["data"][1]["x"] == LAYERS and chart["data"][1]["y"][0] == pytest.approx(100 * 9 / 16)
    assert shares_chart({"a": first, "b": other}) is None


def test_runs_are_called_by_what_tells_them_apart() -> None:
    assert names_of([Path("/r/a"), Path("/r/b")]) == ["a", "b"]
    assert names_of([Path("/r/x/run"), Path("/r/y/run")]) == ["x/run", "y/run"]
    assert names_of([Path("/r/a"), Path("/r/a")]) == ["/r/a (1)", "/r/a (2)"]


def test_a_page_answers_to_clicks_and_arrow_keys(three: list[Path], tmp_path: Path, open_page: Open) -> None:
    page = open_page(write_report(three, tmp_path / "compared.html"))
    page.wait_for_selector("html[data-charts='3']")
    assert page.locator(".runs tbody tr").count() == 3
    page.locator("#chart-front").focus()
    for said in ("dense: 87.12 %", "pruned: 86.64 %", "third"):
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"#chart-front .hovertext >> text={said}")
    page.locator(".runs a", has_text="third").click()
    page.wait_for_selector("html[data-charts='8']")
    assert page.locator("#run1-details").get_attribute("open") is not None
    assert page.locator("#chart-run1-widths .main-svg").count() > 0
    assert page.locator("#chart-run0-widths .main-svg").count() == 0, "not before it is opened"
    before = page.locator("#chart-front .xtitle").text_content()
    page.locator(".choices[data-for=front] label", has_text="MACs").click()
    assert before == "bytes on disk" and page.locator("#chart-front .xtitle").text_content() == "MACs for one image"


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.slow), (390, "dark")])
def test_axe_finds_nothing_serious_and_nothing_sticks_out(
    three: list[Path], tmp_path: Path, open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(write_report(three, tmp_path / "compared.html"), width=width, height=844, scheme=scheme)
    page.locator("#run0-details > summary").click()
    page.wait_for_selector("html[data-charts='8']")
    assert accessibility_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_command_writes_the_page_and_says_where(three: list[Path], tmp_path: Path) -> None:
    one = CliRunner().invoke(app, ["report", str(three[0])])
    assert one.exit_code == 0 and one.stdout == f"{three[0] / 'report.html'}\n"
    page = tmp_path / "all.html"
    several = CliRunner().invoke(app, ["report", *map(str, three), "--out", str(page), "--json"])
    assert json.loads(several.stdout) == {"page": str(page), "size_bytes": page.stat().st_size}
    assert "3 runs compared" in page.read_text()


def test_a_folder_that_is_no_finished_run_is_named(three: list[Path], tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert refused.exit_code == 2 and f"{tmp_path} is no finished run: it has no summary.json" in refused.stderr
    assert "Name folders that prunus compress or prunus demo wrote." in refused.stderr
    (three[1] / "summary.json").unlink()
    refused = CliRunner().invoke(app, ["report", *map(str, three)])
    assert f"to end it, prunus compress --config {three[1] / 'config.yaml'}" in refused.stderr


def test_latency_in_other_runtimes_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    row = {
        "name": "pruned (ort)",
        "runtime": "ONNX Runtime 1.2",
        "precision": "float32",
        "processor": "X1",
        "median_ms": 1.234,
        "p10_ms": 1.2,
        "p90_ms": 1.31,
        "runs": 50,
        "threads": 2,
        "batch": 1,
        "size_bytes": 640000,
        "speedup": 1.5,
        "macs_reduction": 1.74,
    }
    assert '<span class="word">prunus</span> <span class="word">bench</span>' in write_report(run).read_text()
    (run / "bench.json").write_text(json.dumps([row]))
    page = write_report(run).read_text()
    for part in (
        "pruned (ort)",
        "1.23 ms",
        "1.20 – 1.31 ms",
        "1.50×",
        "1.74×",
        "Median of 50 calls, batch 1, 2 threads, X1",
    ):
        assert part in page, part
    (run / "bench.json").write_text(json.dumps([row | {"median_ms": 0}]))
    with pytest.raises(FileFormatError, match=r"bench.json does not fit: 0.median_ms: .*; run prunus bench on this"):
        write_report(run)
