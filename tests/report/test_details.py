"""What a run leaves for its page, compared with its networks: widths, scores, predictions; and how they are shown."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.report.faults import accessibility_faults

import prunus
from prunus.errors import FileFormatError
from prunus.report import read_run, write_report
from prunus.report.details import Details, Group, Outcome, read_details
from prunus.report.network_section import histogram, spans, threshold, threshold_words
from prunus.report.outcome import confusion_chart, worst_classes

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def details(digits_run: Path) -> Details:
    found = read_details(digits_run / "details.json")
    assert found is not None
    return found


def test_predictions_are_those_of_the_networks_in_the_folder(digits_run: Path, details: Details) -> None:
    data = prunus.load_data("digits")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    said = {}
    for name, file in (("dense", "dense"), ("pruned", "model")):
        with torch.inference_mode():
            said[name] = prunus.load(digits_run / f"{file}.safetensors")((data.test_images / 255 - mean) / std).argmax(
                1
            )
        matrix = torch.zeros(10, 10, dtype=torch.int64)
        matrix.index_put_((data.test_labels, said[name]), torch.tensor(1), accumulate=True)
        assert details.test.confusion[name] == tuple(map(tuple, matrix.tolist()))
        assert details.test.right[name] == tuple(matrix.diagonal().tolist())
        accuracy = getattr(read_run(digits_run).summary, name).test_accuracy
        assert accuracy == sum(details.test.right[name]) / sum(details.test.images)
    assert sum(details.test.changed.values()) == int((said["dense"] != said["pruned"]).sum()) > 0
    for image in details.test.shown:
        assert (image.label, image.dense, image.pruned) == (
            int(data.test_labels[image.number]),
            int(said["dense"][image.number]),
            int(said["pruned"][image.number]),
        )
        encoded = write_report(digits_run).read_text().count(image.png)
        assert encoded == 1


def test_widths_and_kept_channels_are_those_of_the_small_network(digits_run: Path, details: Details) -> None:
    modules = dict(prunus.load(digits_run / "model.safetensors").named_modules())
    layers = [node for node in details.nodes if node.kind == "layer"]
    assert len(layers) == 10
    for node in layers:
        assert node.after == len(modules[node.name].weight), node.name  # type: ignore[arg-type]
    plan = json.loads((digits_run / "plan.json").read_text())
    assert {group.name: list(group.keep) for group in details.groups} == {
        group["name"]: group["keep"] for group in plan["groups"]
    }


def test_in_every_group_the_channels_with_the_highest_scores_stay(details: Details) -> None:
    assert any(len(group.keep) < group.channels for group in details.groups)
    for group in details.groups:
        assert group.scores is not None
        best = sorted(range(group.channels), key=lambda channel: -group.scores[channel])[: len(group.keep)]
        assert sorted(best) == list(group.keep)


GROUP = Group.model_validate(
    {
        "name": "a",
        "channels": 4,
        "constraint": "any number",
        "producers": ["a"],
        "consumers": ["b"],
        "passes": [],
        "couplings": [],
        "params_share": 0.1,
        "macs_share": 0.2,
        "keep": [1, 3],
        "scores": [0.1, 0.9, 0.3, 0.5],
    }
)


def test_the_histogram_counts_every_channel_and_the_threshold_lies_between() -> None:
    assert threshold(GROUP, [0, 2]) == pytest.approx(0.4) and threshold_words(GROUP, [0, 2]) == "0.4"
    chart = histogram(GROUP, [0, 2])
    assert chart is not None
    removed, kept = chart["data"]
    assert removed["y"] == [1, 1, 0, 0, 0, 0] and kept["y"] == [0, 0, 0, 1, 0, 1]
    assert chart["layout"]["shapes"][0]["x0"] == pytest.approx(0.4)
    assert threshold(GROUP, [1]) is None and threshold_words(GROUP, [1]).startswith("none")
    assert histogram(GROUP.model_copy(update={"scores": None}), [0]) is None


def test_channels_are_written_as_spans() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8" and spans([]) == ""


TESTED = Outcome(
    classes=("cat", "dog"),
    images=(10, 20),
    right={"dense": (9, 18), "pruned": (6, 19)},
    confusion={"dense": ((9, 1), (2, 18)), "pruned": ((6, 4), (1, 19))},
)


def test_the_class_that_lost_is_named_with_what_it_is_taken_for() -> None:
    assert worst_classes(TESTED) == [
        {
            "class": "cat",
            "images": "10",
            "before": "90.0 %",
            "after": "60.0 %",
            "lost": "−30.0 points",
            "taken": "dog (+3)",
        }
    ]


def test_the_matrix_of_changes_says_what_got_better_and_worse() -> None:
    chart = confusion_chart(TESTED)
    assert chart and [variant["label"] for variant in chart["variants"]] == ["what changed", "after", "before"]
    change, after, _ = (variant["data"][0] for variant in chart["variants"])
    assert change["z"] == [[-30.0, -30.0], [5.0, 5.0]], "worse for cats, better for dogs, on and off the diagonal"
    assert change["customdata"][0] == ["-30.0 points", "+30.0 points"]
    assert after["z"] == [[60.0, 40.0], [5.0, 95.0]]
    assert confusion_chart(TESTED.model_copy(update={"confusion": {}})) is None


def test_a_page_shows_layers_scores_confusion_and_images(digits_run: Path, details: Details, open_page: Open) -> None:
    page = open_page(write_report(digits_run), width=390, height=844, scheme="dark")
    page.wait_for_selector("html[data-charts='5']")
    assert page.locator(".network li").count() == len(details.nodes)
    row = page.locator(".network li", has=page.locator("bdi:text-is('layer3.0.conv1')"))
    node = next(node for node in details.nodes if node.name == "layer3.0.conv1")
    assert f"64 → {node.after}" in row.inner_text()
    row.click()
    panel = page.locator("[data-part=panel]")
    said = panel.inner_text()
    for part in (f"{node.after} of 64 channels", "threshold", "removed", "layer3.0.conv2"):
        assert part in said, part
    assert panel.locator(".scores .bars path").count() > 0
    page.keyboard.press("ArrowDown")
    assert "layer3.0.conv2" in panel.locator("h3").inner_text() and "sum in layer3.0" in panel.inner_text()
    page.locator("#chart-confusion").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#chart-confusion .hovertext >> text=1 taken for 0")
    pictures = page.locator(".images img")
    assert pictures.count() == len(details.test.shown)
    assert pictures.first.evaluate("image => image.naturalWidth") == 8
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert accessibility_faults(page) == [], scheme
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_an_older_folder_says_what_it_lacks(digits_run: Path, tmp_path: Path) -> None:
    for file in digits_run.iterdir():
        if file.is_file() and file.name != "details.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    page = write_report(tmp_path).read_text()
    assert "This folder has no details.json" in page and '<div class="network"' not in page
    assert "This folder has no details.json" not in write_report(digits_run).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["nodes"][2]["inputs"].append(2), "node 2 reads one that is not before it"),
        (lambda data: data["nodes"][1]["groups"].append([99, 1]), "node 1 is of a group that is not there"),
        (lambda data: data["groups"][0]["scores"].pop(), "scores and"),
        (lambda data: data["groups"][0]["keep"].append(99), "keeps a channel that it has not"),
        (lambda data: data["test"]["images"].pop(), "test counts other than 10 classes"),
        (lambda data: data["test"]["shown"][0].update(label=10), "an image is of a class that is not there"),
        (lambda data: data["test"]["shown"][0].update(png='"><script>'), "test.shown.0.png"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    digits_run: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    data = json.loads((digits_run / "details.json").read_text())
    change(data)
    (tmp_path / "details.json").write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match=f"do not fit: .*{re.escape(message)}.*delete the file"):
        read_details(tmp_path / "details.json")


def test_large_images_are_made_smaller(digits_run: Path) -> None:
    from prunus.pipeline.details import _png

    image = Image.open(io.BytesIO(base64.b64decode(_png(torch.zeros(3, 300, 200, dtype=torch.uint8)))))
    assert image.size == (64, 96) and image.mode == "RGB"
