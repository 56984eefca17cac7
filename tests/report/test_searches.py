"""How a search moved, group by group, and the networks that a search of widths measured: read, drawn, and looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.faults import accessibility_faults
from tests.report.sample_run import grouped, metrics, trials, write_run

from prunus.errors import FileFormatError
from prunus.report import read_run, write_report
from prunus.report.search_figures import groups_chart
from prunus.report.trial_figures import trials_chart, trials_words
from prunus.report.trials import WidthTrials, read_trials

Open = Callable[..., Any]


def write_search(folder: Path) -> Path:
    run = write_run(folder)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in grouped(metrics())))
    (run / "width_search.json").write_text(json.dumps(trials()))
    return run


def test_every_group_has_a_row_and_every_epoch_a_column() -> None:
    chart = groups_chart(grouped(metrics()))
    assert chart
    heat, back = chart["data"]
    assert heat["x"] == list(range(1, 9)) and heat["y"] == [0, 1]
    assert heat["z"][0] == [93.8, 87.5, 81.2, 75.0, 68.8, 62.5, 56.2, 50.0]
    assert heat["text"][1][2] == "layer2.0.conv1<br>26 of 32 kept, 1 of them came back, 6 masked"
    assert heat["text"][1][7] == "layer2.0.conv1<br>16 of 32 kept, 12 masked, 4 removed"
    assert (back["x"], back["y"]) == ([3], [1])
    assert chart["layout"]["yaxis"]["ticktext"] == ["conv1", "layer2.0.conv1"]
    assert chart["layout"]["xaxis"]["tickvals"] == list(range(1, 9))


def test_many_groups_stay_on_a_page_and_are_named_as_far_as_there_is_room() -> None:
    heights = {}
    for count in (2, 57, 150):
        names = [f"layer{number}" for number in range(count)]
        counts = {"kept": [5] * count, "returned": [0] * count}
        chart = groups_chart([{"epoch": 1, "groups": {"name": names, "channels": [10] * count, **counts}}])
        assert chart and len(chart["data"]) == 1, "nothing came back"
        heights[count] = chart["height"]
        assert len(chart["layout"]["yaxis"]["ticktext"]) == (75 if count == 150 else count)
        assert chart["layout"]["xaxis"]["tickvals"] == [1]
    assert heights[2] < heights[57] < heights[150] < 1600


def lacking(change: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    rows = grouped(metrics())
    change(next(row for row in rows if row["stage"] == "search"))
    return rows


@pytest.mark.parametrize(
    "rows",
    [
        metrics(),
        lacking(lambda first: first["groups"].pop("name")),
        lacking(lambda first: first["groups"]["kept"].pop()),
        lacking(lambda first: first.update(groups="none")),
        lacking(lambda first: first["groups"].update(channels=[16, 0])),
    ],
)
def test_runs_without_a_fitting_record_have_no_such_chart(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert groups_chart(rows) is None
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run).read_text()
    assert 'id="chart-search"' in page and 'id="chart-groups"' not in page


def test_the_best_network_so_far_is_that_with_the_least_loss(tmp_path: Path) -> None:
    found = read_run(write_search(tmp_path / "run")).trials
    assert found and found.best == [0, 1, 2, 2, 4]
    assert WidthTrials(trials=found.trials[:1] * 2).best == [0, 0], "among equals the earliest"
    accuracy, loss = trials_chart(found)["variants"]
    changed, best, starts = accuracy["data"]
    assert best["y"] == pytest.approx([70, 72, 71, 71, 75]), "the third has less loss, and a little less accuracy"
    assert starts["x"] == [1, 2] and changed["x"] == [3, 4, 5]
    assert loss["data"][1]["y"] == [0.9, 0.8, 0.7, 0.7, 0.6] and loss["data"][0]["y"] == [0.7, None, 0.6]
    assert "5 networks within the budget in 1 min 15 s" in trials_words(found)
    assert "the first, has 70.00 %; number 5 has the least loss, and 75.00 %" in trials_words(found)


def texts(data: dict[str, Any]) -> dict[int, str]:
    """Return what is said of every network, by its number."""
    traces = trials_chart(WidthTrials.model_validate(data))["variants"][0]["data"]
    return {x: text for trace in traces if "text" in trace for x, text in zip(trace["x"], trace["text"], strict=True)}


def test_a_network_says_what_was_changed() -> None:
    said = texts(trials())
    assert said[1] == "network 1: 70.00 %, loss 0.9000<br>the global ranking"
    assert said[4].startswith(
        "network 4: 10.00 %, loss no number<br>made of network 3<br>conv1 7 → 5<br>layer2.0.conv1"
    )
    assert said[5].endswith("made of network 3<br>layer2.0.conv1 22 → 21")


def test_of_many_changes_the_largest_are_named() -> None:
    start, other, *_ = trials()["trials"]
    wide = [start | {"widths": [10] * 7}, other | {"widths": [5, 9, 30, 11, 10, 12, 8], "parent": 0}]
    said = texts({"trials": wide})[2]
    assert said.endswith("group 3 10 → 30<br>group 1 10 → 5<br>group 7 10 → 8<br>group 6 10 → 12<br>and 2 more"), (
        "an older file has no names"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["trials"][1]["widths"].pop(), "trial 1 has 1 widths and not 2"),
        (lambda data: data["trials"][2].update(parent=2), "trial 2 was made of one that is not before it"),
        (lambda data: data["trials"][0].update(accuracy=1.5), "trials.0.accuracy"),
        (lambda data: data["trials"].clear(), "trials: "),
    ],
)
def test_a_width_search_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    data = trials()
    change(data)
    (tmp_path / "width_search.json").write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match=f"does not fit: .*{message}.*; delete the file for a page without it"):
        read_trials(tmp_path / "width_search.json")


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.slow), (390, "dark")])
def test_pointer_and_arrow_keys_find_the_figures(tmp_path: Path, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(write_report(write_search(tmp_path / "run")), width=width, height=844, scheme=scheme)
    page.wait_for_selector("html[data-charts='7']")
    groups = page.locator("#chart-groups")
    groups.focus()
    for key, said in (
        ("ArrowRight", "15 of 16 kept, 1 masked"),
        ("ArrowDown", "30 of 32 kept, 2 masked"),
        ("ArrowLeft", "16 of 32 kept, 12 masked, 4 removed"),
    ):
        page.keyboard.press(key)
        page.wait_for_selector(f"#chart-groups .hovertext >> text={said}")
    groups.locator(".nsewdrag").hover(position={"x": 5, "y": 5})
    page.wait_for_selector("#chart-groups .hovertext >> text=15 of 16 kept")
    page.locator("#chart-trials").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#chart-trials .hovertext >> text=made of network 1")
    page.locator(".choices[data-for=trials] label", has_text="loss").click()
    assert page.locator("#chart-trials .ytitle").text_content() == "held-out loss"
    assert accessibility_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
