"""A network of 110 layers: its page is small, drawn, and can be searched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from prunus.cli import app
from prunus.report import write_report

Open = Callable[..., Any]


@pytest.mark.slow
def test_the_page_of_a_resnet110_is_small_enough_to_send(tmp_path: Path, open_page: Open) -> None:
    """Colour images of noise, which no format packs, and the search of a run of two hundred epochs."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for label in range(10):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    run = tmp_path / "run"
    settings = ["--model", "resnet110", "--data", str(tmp_path / "images"), "--method", "layer-fusion", "--macs", "0.5"]
    epochs = ["--from-scratch", "--search-epochs", "1", "--finetune-epochs", "0", "--recover", "recalibrate"]
    done = CliRunner().invoke(app, ["compress", *settings, *epochs, "--out", str(run), "--threads", "1"])
    assert done.exit_code == 0, done.output
    searched = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    rows = [{**searched, "epoch": epoch} for epoch in range(1, 201)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_report(run)
    assert path.stat().st_size < 5_000_000
    page = open_page(path)
    page.wait_for_selector("html[data-charts]")
    assert page.locator("#chart-groups .yaxislayer-above text").count() == 57
    page.locator("[data-part=search]").fill("layer3.17.conv2")
    page.keyboard.press("Enter")
    assert page.locator("[data-part=panel] h3").inner_text() == "layer3.17.conv2"
    assert len(page.locator("[data-part=panel] dd").all()) > 5
