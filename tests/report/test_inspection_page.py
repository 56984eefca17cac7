"""The page of an inspection, in a real browser: drawn, clicked, walked through by keyboard, searched, accessible."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.report.faults import accessibility_faults
from torch import Tensor, nn
from typer.testing import CliRunner

from prunus.cli import app
from prunus.inspecting import inspect_model, inspect_network
from prunus.inspection import Inspection
from prunus.report.inspection_page import render_inspection, write_inspection

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect_network("resnet20")


@pytest.fixture(scope="module")
def file(found: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspection(found, tmp_path_factory.mktemp("page") / "resnet20.html")


def row(page: Any, name: str) -> Any:
    return page.locator(".network li", has=page.locator(f"bdi:text-is('{name}')"))


def selected(page: Any) -> list[str]:
    return list(page.locator(".network li[aria-selected=true] b").all_inner_texts())


def test_every_node_and_every_edge_is_drawn(found: Inspection, file: Path, open_page: Open) -> None:
    page = open_page(file)
    assert page.locator(".network li").count() == len(found.nodes) == 32
    assert page.locator(".network circle").count() == len(found.nodes)
    assert page.locator(".network path").count() == sum(len(node.inputs) for node in found.nodes)
    assert page.locator(".network .join text").all_text_contents() == ["+"] * 9
    colours = {
        name: row(page, name).locator(".width i").evaluate("bar => getComputedStyle(bar).backgroundColor")
        for name in ("conv1", "layer1.0.conv1", "layer1.0.conv2", "fc")
    }
    assert colours["conv1"] == colours["layer1.0.conv2"], "of one group"
    assert len(set(colours.values())) == 3


def test_a_click_shows_the_group_and_lights_up_its_mates(found: Inspection, file: Path, open_page: Open) -> None:
    page = open_page(file)
    row(page, "layer1.1.conv2").click()
    said = page.locator("#panel").inner_text()
    group = found.groups[0]
    assert group.name == "conv1"
    for part in (
        "layer1.1.conv2",
        "16 of group conv1",
        "any number",
        "sum in layer1.0 and 2 more",
        "39.0",
        *group.consumers,
    ):
        assert part in said, part
    mates = page.locator(".network li.mate b").all_inner_texts()
    assert mates == [node.name for node in found.nodes if node.groups and node.groups[0][0] == 0]
    assert selected(page) == ["layer1.1.conv2"]
    row(page, "fc").click()
    assert "it is an output of the model" in page.locator("#panel").inner_text()
    assert page.locator(".network li.mate").count() == 0


def test_the_keyboard_walks_through_the_rows(file: Path, open_page: Open) -> None:
    page = open_page(file)
    page.locator("#search").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert selected(page) == ["conv1"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert selected(page) == ["layer1.0.conv1"] and "layer1.0.conv1" in page.locator("#panel").inner_text()
    page.keyboard.press("End")
    assert selected(page) == ["fc"]
    page.keyboard.press("Home")
    assert selected(page) == ["input"]
    page.keyboard.press("Escape")
    assert selected(page) == []


def test_a_row_answers_to_the_pointer(file: Path, open_page: Open) -> None:
    page = open_page(file)
    target = row(page, "conv1")
    before = target.evaluate("row => getComputedStyle(row).backgroundColor")
    target.hover()
    assert target.evaluate("row => getComputedStyle(row).backgroundColor") != before


def test_the_search_finds_layers_groups_and_operations(file: Path, open_page: Open) -> None:
    page = open_page(file)
    page.locator("#search").fill("layer3 sum")
    assert page.locator("#found").inner_text() == "3 of 32"
    assert page.locator(".network li.hit b").all_inner_texts() == ["layer3.0", "layer3.1", "layer3.2"]
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert selected(page) == ["layer3.1"]
    page.keyboard.press("Escape")
    assert page.locator("#found").inner_text() == "" and page.locator(".network.filtered").count() == 0


def test_the_table_leads_to_the_network(file: Path, open_page: Open) -> None:
    page = open_page(file)
    page.locator(".to-group", has_text="layer2.0.conv2").click()
    assert selected(page) == ["layer2.0.conv2"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing_serious_and_the_page_fits(file: Path, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(file, width=width, height=844, scheme=scheme)
    row(page, "layer1.0.conv2").click()
    assert accessibility_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shot = np.asarray(Image.open(BytesIO(page.screenshot())).convert("L"))
    assert (shot.mean() > 128) == (scheme == "light") and shot.std() > 5


def test_on_a_telephone_the_panel_comes_when_called_and_leaves_the_row_in_sight(file: Path, open_page: Open) -> None:
    page = open_page(file, width=390, height=844)
    panel = page.locator("#panel")
    assert not panel.is_visible()
    row(page, "layer2.2.conv1").click()
    assert panel.is_visible()
    box, over = row(page, "layer2.2.conv1").bounding_box(), panel.bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= over["y"] + 1
    page.locator("#close").click()
    assert not panel.is_visible()


class Evil(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"</script><img src=x onerror=alert(1)>": nn.Conv2d(3, 4, 1)})
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner.values():
            x = layer(x)
        return self.out(x.mean((2, 3)))


def test_names_cannot_become_markup(tmp_path: Path, open_page: Open) -> None:
    page = open_page(write_inspection(inspect_model(Evil(), torch.ones(1, 3, 4, 4)), tmp_path / "page.html"))
    page.locator(".network li").nth(1).click()
    assert page.locator("img").count() == 0
    assert "<img src=x" in page.locator("#panel").inner_text()


def test_the_page_needs_nothing_else_and_is_small(found: Inspection) -> None:
    page = render_inspection(found)
    assert len(page) < 100_000
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://""", page)
    assert "default-src 'none'" in page


@pytest.mark.slow
def test_a_deep_network_stays_under_two_megabytes() -> None:
    page = render_inspection(inspect_network("torchvision:resnet152"))
    assert page.count("<li role") == 207 and len(page.encode()) < 2_000_000


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", "resnet8", "--page", str(tmp_path / "a.html")])
    assert result.exit_code == 0 and result.stderr == f"wrote {tmp_path / 'a.html'}\n"
    assert "<h1>resnet8</h1>" in (tmp_path / "a.html").read_text()
    refused = CliRunner().invoke(app, ["inspect", "resnet8", "--open"])
    assert refused.exit_code == 2 and "--open needs a page: type --page FILE.html as well." in refused.stderr


def test_the_couplings_are_the_sums_of_the_network(found: Inspection) -> None:
    assert [(row.name, [(c.op, c.count, c.first) for c in row.couplings]) for row in found.groups[:3]] == [
        ("conv1", [("sum", 3, "layer1.0")]),
        ("layer2.0.conv2", [("sum", 3, "layer2.0")]),
        ("layer3.0.conv2", [("sum", 3, "layer3.0")]),
    ]
    assert all(not row.couplings for row in found.groups[3:])
