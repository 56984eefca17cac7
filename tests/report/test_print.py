"""Paper: everything that the screen shows or hides behind a click, dark on white, within a page's width."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.report.sample_run import grouped, metrics, trials, write_run
from typer.testing import CliRunner

from prunus.cli import app
from prunus.report import write_report

Open = Callable[..., Any]
WIDTH, HEIGHT = 688, 1017  # pixels of an A4 sheet within margins of 14 mm

LOOK = """() => {
  const shown = [...document.querySelectorAll("body *")].filter((element) => element.getClientRects().length);
  const scrolls = (element) => /auto|scroll/.test(getComputedStyle(element).overflow)
    && (element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1);
  const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
  const style = getComputedStyle(document.body);
  return {
    width: document.documentElement.scrollWidth,
    scrolling: shown.filter(scrolls).map((element) => element.outerHTML.slice(0, 120)),
    closed: document.querySelectorAll("details:not([open]):not(.on-screen)").length,
    paper: light(style.backgroundColor),
    ink: light(style.color),
    chartInk: [...document.querySelectorAll(".chart text")].map((text) => light(getComputedStyle(text).fill)),
    charts: shown.filter((element) => element.matches(".chart")).map((place) => {
      const drawn = place.querySelector(".main-svg");
      return [drawn ? drawn.clientWidth - place.clientWidth : "empty", place.clientHeight];
    }),
  };
}"""


def on_paper(page: Any) -> dict[str, Any]:
    """Lay the page out as for printing, and say what it looks like."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    found: dict[str, Any] = page.evaluate(LOOK)
    return found


def full_run(source: Path, folder: Path) -> Path:
    """A real run with a search in it, group by group and network by network: a page with all its sections."""
    shutil.copytree(source, folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in grouped(metrics())))
    (folder / "width_search.json").write_text(json.dumps(trials()))
    return folder


def test_a_dark_screen_prints_all_of_the_report_on_white_paper(
    digits_run: Path, tmp_path: Path, open_page: Open
) -> None:
    page = open_page(write_report(full_run(digits_run, tmp_path / "run")), scheme="dark")
    page.wait_for_selector("html[data-charts='8']")
    widths = "[...document.querySelectorAll('.chart .main-svg:first-child')].map((drawn) => drawn.clientWidth)"
    before = page.evaluate(widths)
    found = on_paper(page)
    assert (found["width"], found["scrolling"], found["closed"]) == (WIDTH, [], 0)
    assert found["paper"] == 1 and found["ink"] < 0.2
    assert len(found["chartInk"]) > 50 and max(found["chartInk"]) < 0.5
    assert len(found["charts"]) == 8
    assert all(over != "empty" and over <= 0 and height < HEIGHT for over, height in found["charts"]), found["charts"]
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    for _ in range(50):  # Plotly fits its charts to the screen again a moment later
        page.wait_for_timeout(100)
        if page.evaluate(widths) == before:
            break
    assert page.evaluate(widths) == before
    assert page.locator("details[open]").count() == 0
    printed = page.pdf()
    assert 6 < len(re.findall(rb"/Type /Page\b", printed)) < 20


def test_runs_that_are_closed_on_the_screen_are_open_on_paper(tmp_path: Path, open_page: Open) -> None:
    names = [f"layer{number}.a.rather.long.name" for number in range(110)]
    widths = [{"layer": name, "before": 16, "after": 8} for name in names]
    runs = [write_run(tmp_path / name, widths=widths) for name in ("a", "b")]
    page = open_page(write_report(runs, tmp_path / "compared.html"), scheme="dark")
    page.wait_for_selector("html[data-charts='3']")
    found = on_paper(page)
    assert (found["width"], found["scrolling"], found["closed"]) == (WIDTH, [], 0)
    assert len(found["charts"]) == 13 and all(over != "empty" and over <= 0 for over, _ in found["charts"])


def test_an_inspection_prints_on_white_paper(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["inspect", "resnet8", "--page", str(path)]).exit_code == 0
    page = open_page(path, scheme="dark")
    page.locator(".network li").first.wait_for()
    found = on_paper(page)
    assert found["paper"] == 1 and found["ink"] < 0.2
    assert (found["width"], found["scrolling"]) == (WIDTH, [])


PIECES = """() => [...document.querySelectorAll(".network li")].map((row) => {
  const centre = (element) => { const box = element.getBoundingClientRect(); return (box.top + box.bottom) / 2; };
  const own = row.querySelectorAll(`svg g[data-node="${row.dataset.node}"] circle`);
  const lines = [...row.querySelectorAll("svg path")].map((path) => path.getAttribute("d"));
  return [own.length, own.length ? Math.abs(centre(own[0]) - centre(row)) : null, lines];
})"""


def test_on_paper_every_row_of_a_network_has_its_own_piece_of_the_drawing(tmp_path: Path, open_page: Open) -> None:
    """A sheet's end pushes a row to the next one, and would leave a drawing of all rows behind."""
    path = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["inspect", "resnet8", "--page", str(path)]).exit_code == 0
    page = open_page(path)
    page.locator(".network li").first.wait_for()
    whole = page.locator(".network > svg path").evaluate_all("paths => paths.map((path) => path.getAttribute('d'))")
    on_paper(page)
    pieces = page.evaluate(PIECES)
    assert len(pieces) > 10 and all(count == 1 and off < 1 for count, off, _ in pieces)
    drawn = [line for *_, lines in pieces for line in lines]
    assert set(drawn) == set(whole) and len(drawn) > len(whole), "a line is drawn in each of its rows"
    assert page.evaluate("getComputedStyle(document.querySelector('.network > svg')).visibility") == "hidden"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".network li svg").count() == 0 and page.locator(".sliced").count() == 0


def test_on_paper_a_note_gives_way_before_the_name_of_a_layer_does(tmp_path: Path, open_page: Open) -> None:
    path = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["inspect", "googlenet", "--page", str(path)]).exit_code == 0
    page = open_page(path)
    page.locator(".network li").first.wait_for()
    on_paper(page)
    cut = """(part) => [...document.querySelectorAll(`.network .what ${part}`)]
      .filter((element) => element.scrollWidth > element.clientWidth).length"""
    assert page.evaluate(cut, "small") > 10
    assert page.evaluate(cut, "b") == 0
    colours = "() => getComputedStyle(document.querySelector('.dot')).printColorAdjust"
    assert page.evaluate(colours) == "exact", "or the dots and bars of the groups are not printed"
