"""A search by Optuna: trials that are cells, told what those came to, and none lost between two sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from tests.report.sample_run import summary, write_run

from prunus.sweep.cells import Job, SweepFolder
from prunus.sweep.results import read_rows
from prunus.sweep.run import write_down
from prunus.sweep.search import Search
from prunus.sweep.space import Range, SearchPlan
from prunus.sweep.spec import load_sweep
from prunus.sweep.states import State

BASE = {"model": "resnet8", "data": "digits", "epochs": 1}
SPACE = {"macs": Range(0.2, 0.6), "criterion": ("l1_norm", "random"), "finetune_epochs": Range(1, 3)}
PLAN = SearchPlan(SPACE, trials=6, objectives=("accuracy", "macs"), seed=3)


def opened(folder: SweepFolder, plan: SearchPlan = PLAN) -> Search:
    folder.path.mkdir(exist_ok=True)
    return Search(folder, BASE, plan)


def carried_out(folder: SweepFolder, cell: Job, accuracy: float = 0.8) -> None:
    """Leave what a cell leaves: its MACs follow its budget."""
    place = write_run(folder.run("cell", cell.name), pruned=summary()["pruned"] | {"macs": int(1e6 * cell.config.macs)})
    row = {"stage": "finetune", "epoch": 1, "val_accuracy": accuracy}
    (place / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (place / "report.html").write_text("")


def study(folder: SweepFolder) -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder.study)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def test_trials_are_cells_within_the_space_and_are_told_their_values(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    search = opened(folder)
    while (cell := search.more()) is not None:
        assert 0.2 <= float(str(cell.config.macs)) <= 0.6
        assert cell.config.criterion in ("l1_norm", "random") and cell.config.finetune_epochs in (1, 2, 3)
        carried_out(folder, cell, 0.5 + 0.1 * cell.config.finetune_epochs)
        search.settled(cell, State(status="done"))
    found = study(folder)
    assert found.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert len(found.trials) == 6
    for trial in found.trials:
        wanted = [0.5 + 0.1 * trial.params["finetune_epochs"], int(1e6 * trial.params["macs"])]
        assert trial.values == pytest.approx(wanted)


def test_a_search_goes_on_with_open_trials_and_retries_failed_ones(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    first = opened(folder)
    done, failed, killed = first.more(), first.more(), first.more()
    assert done and failed and killed
    carried_out(folder, done)
    first.settled(done, State(status="done"))
    first.settled(failed, State(status="failed", error=("out of memory",)))
    folder.study.with_name("optuna.log.lock").symlink_to("optuna.log")  # as a process that was killed leaves it

    again = opened(folder)
    assert {cell.name for cell in again.cells} == {done.name, failed.name, killed.name}
    for cell in (failed, killed):
        carried_out(folder, cell)
        again.settled(cell, State(status="done"))
    again.settled(done, State(status="done"))  # as the scheduler says of those that are there
    found = study(folder)
    states = [trial.state.name for trial in found.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert found.trials[3].params == found.trials[1].params

    names = {done.name, failed.name, killed.name}
    more = []
    while (cell := again.more()) is not None:
        more.append(cell.name)
        carried_out(folder, cell)
        again.settled(cell, State(status="done"))
    assert len(more) == 3 and not names & set(more), "three of six were asked for before"
    assert opened(folder).more() is None
    assert len(opened(folder).cells) == 6


def test_the_same_settings_twice_run_once(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    search = opened(folder, SearchPlan({"macs": (0.3, 0.5)}, trials=9, objectives=("accuracy",), seed=0))
    cells = []
    while (cell := search.more()) is not None:
        cells.append(cell.name)
        carried_out(folder, cell)
        search.settled(cell, State(status="done"))
    assert len(cells) == len(set(cells)) <= 2
    assert [trial.state.name for trial in study(folder).trials] == ["COMPLETE"] * 9


def test_another_question_is_another_study(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    assert opened(folder).more() is not None
    assert len(opened(folder).cells) == 1
    assert not opened(folder, SearchPlan(SPACE, 6, ("accuracy",), 3)).cells


def test_the_page_draws_every_cell_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("base: {model: resnet8, data: <b>x</b>}\ngrid: {macs: [0.3, 0.5, 0.7]}\n")
    sweep = load_sweep(file, {"out": tmp_path / "out"})
    folder = SweepFolder(sweep.folder)
    for cell, accuracy in zip(sweep.cells, (0.7, 0.6, 0.9), strict=True):
        carried_out(folder, cell, accuracy)
    rows = write_down(sweep, sweep.cells, finished=True)
    assert rows == read_rows(folder, sweep.cells)
    assert [row.front for row in rows] == [("macs", "size_bytes"), (), ("macs",)] or rows[0].front == ("macs",)
    page = folder.page.read_text()
    assert "<b>x</b>" not in page
    charts = json.loads(page.partition('<script id="charts" type="application/json">')[2].partition("</script>")[0])
    others, front = charts["macs"]["data"]
    assert (others["x"], front["x"]) == ([500_000], [300_000, 700_000])
    assert front["y"] == pytest.approx([70, 90])
    assert "macs 0.3<br>held out 70.00 %, test 86.64 %" in front["text"][0]
    assert json.loads(folder.results.read_text())["complete"] is True
