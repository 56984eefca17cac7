"""The page of a sweep: its charts and its table, for the pointer, the keyboard, a phone and paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.faults import accessibility_faults
from tests.report.test_print import HEIGHT, WIDTH, on_paper

from prunus.report.front import render_front

Open = Callable[..., Any]
FRONTS = {"macs": ["c1", "c3"], "size_bytes": ["c2", "c3"]}


def row(number: int, held_out: float | None, **settings: object) -> dict[str, Any]:
    name = f"c{number}"
    return {
        "name": name,
        "settings": {"method": "channel-sparsity", "criterion": "delivered_energy", "macs": 0.1 * number} | settings,
        "run": f"runs/sweep/cells/method-channel-sparsity_criterion-delivered_energy_macs-0.{number}-a262a747",
        "status": "failed" if held_out is None else "done",
        "error": ["<b>it broke</b>"] if held_out is None else [],
        "held_out_accuracy": held_out,
        "test_accuracy": held_out,
        "macs": None if held_out is None else 100_000 * number,
        "size_bytes": None if held_out is None else 400_000 // number,
        "front": [cost for cost, names in FRONTS.items() if name in names],
    }


@pytest.fixture
def page_of_a_sweep(tmp_path: Path) -> Path:
    rows = [row(1, 0.81, search_epochs=12), row(2, 0.7), row(3, 0.9, learning_rate=0.0123456), row(4, None)]
    rows[1]["settings"] |= {"finetune_learning_rate": 0.05, "calibration_images": 1024, "recover": "reconstruct"}
    path = tmp_path / "front.html"
    path.write_text(render_front("resnet20 on digits", rows, FRONTS))
    return path


def test_pointer_and_arrow_keys_tell_of_the_cells(page_of_a_sweep: Path, open_page: Open) -> None:
    page = open_page(page_of_a_sweep)
    page.wait_for_selector("html[data-charts='2']")
    page.locator("#chart-macs").focus()
    for said in ("macs 0.2", "macs 0.1", "macs 0.3"):  # the other cell, then those in the front
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"#chart-macs .hovertext >> text={said}")
    page.locator("#chart-size_bytes .points path").first.hover(force=True)
    page.wait_for_selector("#chart-size_bytes .hovertext >> text=held out 81.00 %")
    cells = page.locator(".cells tbody tr").all_inner_texts()
    assert [text.split("\t")[-1] for text in cells] == ["MACs", "bytes", "MACs, bytes", "–"]
    assert "0.01235" in cells[2] and page.locator("b", has_text="it broke").count() == 0
    page.locator("summary").click()
    assert page.locator("details code").nth(2).inner_text().endswith("macs-0.3-a262a747")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing_serious_and_nothing_overlaps(
    page_of_a_sweep: Path, open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(page_of_a_sweep, width=width, height=844, scheme=scheme)
    page.wait_for_selector("html[data-charts='2']")
    assert accessibility_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = """() => [".xtitle", ".legend"].map((name) => {
      const { left, right, top, bottom } = document.querySelector(`#chart-macs ${name}`).getBoundingClientRect();
      return [left, right, top, bottom];
    })"""
    title, legend = page.evaluate(boxes)
    assert title[1] <= legend[0] or legend[1] <= title[0] or title[3] <= legend[2] or legend[3] <= title[2]


def test_a_sweep_prints_on_white_paper(page_of_a_sweep: Path, open_page: Open) -> None:
    page = open_page(page_of_a_sweep, scheme="dark")
    page.wait_for_selector("html[data-charts='2']")
    found = on_paper(page)
    assert (found["width"], found["scrolling"], found["closed"]) == (WIDTH, [], 0)
    assert found["paper"] == 1 and found["ink"] < 0.2
    assert len(found["charts"]) == 2
    assert all(over != "empty" and over <= 0 and height < HEIGHT / 2 for over, height in found["charts"])
