"""The main job on the digits, in this process: what it writes, what it refuses, what it does a second time."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import prunus
from prunus import pipeline
from prunus.config import RunConfig
from prunus.cost import count_cost
from prunus.data import load_data, normalize
from prunus.errors import BudgetError, ConfigError, FileFormatError, ModelError, RunError, VerificationError
from prunus.files import load_tensors, read_json, save_tensors
from prunus.graph.trace import trace
from prunus.methods import Choice, calibrated, schedules
from prunus.models import build_model
from prunus.pipeline import options, widths
from prunus.pipeline.run import prepare
from prunus.pipeline.run_folder import RunFolder
from prunus.pipeline.search import rounds_epochs
from prunus.plan import PruningPlan
from prunus.stopping import Stopping
from prunus.training import evaluate
from prunus.training.evaluate import predict_classes
from prunus.verify import verify

LIMIT = 120_000  # bytes
SPARSITY = {"method": "channel-sparsity"}
EXAMPLE = torch.zeros(1, 1, 8, 8)
SETTINGS: dict[str, Any] = {
    "model": "resnet8",
    "data": "digits",
    "size": LIMIT,
    "epochs": 2,
    "finetune_epochs": 1,
    "threads": 1,
    "device": "cpu",
}


def compress(out: Path, *, fresh: bool = False, **changes: Any) -> tuple[Path, str]:
    """Run the pipeline; return the folder and what was said."""
    said = io.StringIO()
    config = RunConfig.model_validate({**SETTINGS, "out": out, **changes})
    return pipeline.compress(config, Console(file=said, width=200), fresh=fresh), said.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compress(tmp_path_factory.mktemp("run") / "a")[0]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_folder_holds_all_that_was_promised_and_nothing_else(finished: Path) -> None:
    assert {file.name for file in finished.iterdir()} == {
        ".lock",
        "config.yaml",
        "details.json",
        "scores.json",
        "environment.json",
        "metrics.jsonl",
        "dense.safetensors",
        "plan.json",
        "verification.json",
        "recovery.json",
        "model.safetensors",
        "summary.json",
        "report.html",
    }


def test_the_file_is_within_the_budget_and_the_network_is_what_the_summary_says(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    data = load_data("digits")
    for side, name in (("dense", "dense.safetensors"), ("pruned", "model.safetensors")):
        model = prunus.load(finished / name)
        cost = count_cost(model, EXAMPLE)
        accuracy = evaluate(
            model,
            data.test_images,
            data.test_labels,
            normalize=lambda images: normalize(images, data.mean, data.std),
        )["accuracy"]
        assert summary[side]["size_bytes"] == (finished / name).stat().st_size
        assert (summary[side]["params"], summary[side]["macs"]) == (cost.params, cost.macs)
        assert summary[side]["test_accuracy"] == accuracy
        assert summary[side]["latency_ms"] == summary["latency"][side]["median_ms"] > 0
    assert 0.95 * LIMIT < summary["pruned"]["size_bytes"] <= LIMIT
    assert summary["epochs"] == {"dense": 2, "search": 0, "finetune": 1}
    assert summary["budget"] == {"size": LIMIT}
    widths = {row["layer"]: (row["before"], row["after"]) for row in summary["widths"]}
    assert widths["layer3.0.conv1"] == (64, prunus.load(finished / "model.safetensors").layer3[0].conv1.out_channels)  # type: ignore[index, union-attr]
    assert any(after < before for before, after in widths.values())


def test_plan_and_verification_are_of_this_removal(finished: Path) -> None:
    plan = PruningPlan.from_json(finished / "plan.json")
    assert plan.removed > 0
    assert (plan.criterion, plan.budget) == ("refit_error", {"size_bytes": LIMIT})
    assert plan.after.size_bytes <= LIMIT
    found = read_json(finished / "verification.json")
    assert found["passed"] is True
    assert found["max_relative_error"] <= found["tolerance"] <= 1e-10


def test_metrics_have_one_line_an_epoch(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("dense", 1), ("dense", 2), ("finetune", 1)]
    assert all(0 <= row["val_accuracy"] <= 1 for row in rows)


def test_the_environment_names_versions_and_processor(finished: Path) -> None:
    environment = read_json(finished / "environment.json")
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == 1
    assert environment["processor"]


def test_a_finished_run_is_shown_and_not_done_again(run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.iterdir() if file.name != ".lock"}
    _, said = compress(run)
    assert "finished" in said
    assert "--fresh" in said
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_lost_report_is_written_again(run: Path) -> None:
    (run / "report.html").unlink()
    compress(run)
    assert (run / "report.html").stat().st_size > 1000


def test_fresh_starts_over_and_leaves_other_peoples_files(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    _, said = compress(run, fresh=True, epochs=1, seed=5)
    assert "dense      training" in said
    assert (run / "notes.txt").read_text() == "mine"
    assert read_json(run / "summary.json")["seed"] == 5
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("dense", 1), ("finetune", 1)]


def test_other_settings_are_refused_and_listed(run: Path) -> None:
    with pytest.raises(RunError) as caught:
        compress(run, epochs=3, seed=1)
    message = str(caught.value)
    assert "epochs: 2 there, 3 here" in message
    assert "seed: 0 there, 1 here" in message
    assert "model" not in message.replace("--model", "")
    assert "--out" in message
    assert "--fresh" in message


def test_a_folder_in_use_is_refused(run: Path) -> None:
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        with pytest.raises(RunError, match="in use by process 4711"):
            compress(run)
    compress(run)


def test_a_folder_with_strange_files_is_refused(run: Path) -> None:
    (run / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"dense\.safetensors.*no config\.yaml"):
        compress(run)
    (run / "config.yaml").write_text("model: [")
    with pytest.raises(RunError, match=r"config\.yaml"):
        compress(run)


@pytest.mark.parametrize("name", ["dense.safetensors", "metrics.jsonl", "plan.json", "recovery.json"])
def test_a_damaged_file_of_the_run_is_one_clear_error(run: Path, name: str) -> None:
    (run / "summary.json").unlink()
    if name == "plan.json":
        (run / "model.safetensors").unlink()
    if name in {"plan.json", "recovery.json"}:
        (run / "checkpoints").mkdir()
        shutil.copy(run / "dense.safetensors", run / "checkpoints" / "removed.safetensors")
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[: len(data) - 40])
    with pytest.raises(FileFormatError, match=name.replace(".", r"\.") + ".* --fresh"):
        compress(run)
    if name == "plan.json":
        for left in (run / name, *run.glob("checkpoints/*")):
            left.unlink()
        compress(run)
        assert (run / "summary.json").exists()


def test_an_unreachable_budget_is_said_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="not reachable"):
        compress(tmp_path / "a", size="5kB")
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == ""


def test_a_wrong_criterion_is_said_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'l1_norm'"):
        compress(tmp_path / "a", criterion="l1_nrom")
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == ""
    compress(tmp_path / "a", criterion="l1_norm", epochs=1)  # nothing to lose yet: the corrected command just runs
    assert "criterion: l1_norm" in (tmp_path / "a" / "config.yaml").read_text()


def test_calibration_images_come_with_their_own_labels(tmp_path: Path) -> None:
    """In batches of many classes, none twice, and without augmentation."""
    config = RunConfig.model_validate({**SETTINGS, "out": tmp_path, "calibration_images": 200})
    run = prepare(config, RunFolder(tmp_path), torch.device("cpu"), Console(file=io.StringIO()), Stopping())
    batches = run.labelled_calibration(64)
    assert [len(labels) for _, labels in batches] == [64, 64, 64, 8]
    images = run.normalize(run.split.train_images).flatten(1)
    places = [int((images == image.flatten()).all(1).nonzero()[0]) for batch, _ in batches for image in batch]
    assert len(set(places)) == 200
    assert torch.equal(run.split.train_labels[places], torch.cat([labels for _, labels in batches]))
    assert len(batches[0][1].unique()) > 5


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device cuda:77"):
        compress(tmp_path / "a", device="cuda:77")


@pytest.mark.parametrize(
    ("changes", "cost", "share"),
    [
        ({"method": "layer-fusion", "macs": 0.5, "search_epochs": 2}, "macs", 0.5),
        ({"schedule": "iterative", "rounds": 2, "params": 0.4, "finetune_epochs": 2}, "params", 0.4),
        (
            {**SPARSITY, "degree": "activation", "allocation": "local", "macs": "400k", "params": 0.9},
            "macs",
            400_000 / 763_520,
        ),
        ({"pruning_ratio": 0.5, "criterion": "random", "finetune_epochs": 0}, "channels", 0.5),
        ({"pruning_ratio": 0.5, "criterion": "taylor", "finetune_epochs": 0}, "channels", 0.5),
        ({"pruning_ratio": 0.5, "criterion": "delivered_energy", "finetune_epochs": 0}, "channels", 0.5),
        (
            {"method": "layer-fusion", "criterion": "taylor", "macs": 0.5, "search_epochs": 2, "finetune_epochs": 0},
            "macs",
            0.5,
        ),
    ],
    ids=["layer-fusion", "iterative", "activation", "ratio", "gradients", "energy", "layer-fusion by gradients"],
)
def test_every_method_from_a_checkpoint(
    finished: Path, tmp_path: Path, changes: dict[str, Any], cost: str, share: float
) -> None:
    out, said = compress(tmp_path / "a", checkpoint=finished / "dense.safetensors", size=None, **changes)
    assert "dense      from" in said
    assert (out / "dense.safetensors").read_bytes() == (finished / "dense.safetensors").read_bytes()
    plan = PruningPlan.from_json(out / "plan.json")
    small = prunus.load(out / "model.safetensors")
    for group in plan.groups:
        name, axis = next((name, axis) for name, axis in trace(small, EXAMPLE).group(group.name).tensors)
        assert small.state_dict()[name].shape[axis] == len(group.keep), group.name
    summary = read_json(out / "summary.json")
    summary["dense"]["channels"] = sum(group.size for group in plan.groups)
    summary["pruned"]["channels"] = sum(len(group.keep) for group in plan.groups)
    assert 0.9 * share < summary["pruned"][cost] / summary["dense"][cost] <= share
    assert read_json(out / "verification.json")["passed"] is True


def test_widths_are_searched_for_and_a_stopped_search_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "checkpoint": finished / "dense.safetensors",
        "allocation": "search",
        "search_minutes": 1e-6,
        "finetune_epochs": 0,
    }
    shown, judged_after, scored = [], [], []
    scores_each = Choice.scores_each

    def counted(self: Choice, *arguments: Any) -> Any:
        scored.append(self.criterion)
        return scores_each(self, *arguments)

    def watched(*arguments: Any, **options: Any) -> prunus.WidthSearch:
        judged_after.append(options.get("recover", "nothing"))
        return prunus.search_widths(*arguments, **options)

    monkeypatch.setattr(widths, "search_widths", watched)
    monkeypatch.setattr(Choice, "scores_each", counted)

    def stopped(self: object, done: float, best: object) -> None:
        shown.append(done)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(widths._Display, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            compress(tmp_path / "a", **settings)
    trials = read_json(tmp_path / "a" / "width_search.json")["trials"]
    assert len(trials) == 3, "all starting points are measured, however short the time"
    out, said = compress(tmp_path / "a", **settings)
    found = read_json(out / "width_search.json")["trials"]
    assert found[:3] == trials and len(found) > 3
    best = min(found, key=lambda trial: trial["loss"])
    plan = PruningPlan.from_json(out / "plan.json")
    assert [len(group.keep) for group in plan.groups] == best["widths"]
    assert plan.criterion == "refit_error" and plan.after.size_bytes <= LIMIT
    assert f"search     {len(found)} networks: refitted" in said
    other, said = compress(tmp_path / "b", **settings, recover="recalibrate")
    first = read_json(other / "width_search.json")["trials"][0]
    assert "networks: recalibrated, the global ranking" in said
    assert first["widths"] == found[0]["widths"] and first["loss"] != found[0]["loss"]
    assert judged_after == ["reconstruct", "reconstruct", "recalibrate"]
    assert len(scored) == 2 + 3, "before a run trains, and once a search, however many normalisations that starts from"
    names = [group.name for group in plan.groups]
    assert set(names) <= set(read_json(out / "width_search.json")["groups"])
    page = (out / "report.html").read_text()
    assert 'id="chart-trials"' in page and f"number {found.index(best) + 1} has the least loss" in page
    compress(tmp_path / "a", **{**settings, "allocation": "global", "search_minutes": 5.0}, fresh=True)
    assert not (tmp_path / "a" / "width_search.json").exists()


def test_a_plain_state_dict_is_a_checkpoint_too(finished: Path, tmp_path: Path) -> None:
    tensors, _ = load_tensors(finished / "dense.safetensors")
    save_tensors(tmp_path / "plain.safetensors", tensors, {})
    out, _ = compress(tmp_path / "a", checkpoint=tmp_path / "plain.safetensors", finetune_epochs=0)
    assert (out / "dense.safetensors").read_bytes() == (finished / "dense.safetensors").read_bytes()


def test_a_checkpoint_that_does_not_fit_is_refused(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(ModelError, match=r"conv1\.weight has shape .* instead of"):
        compress(tmp_path / "a", checkpoint=finished / "model.safetensors")
    with pytest.raises(ModelError, match=r"no resnet8_pad .*is not in this network"):
        compress(tmp_path / "b", checkpoint=finished / "dense.safetensors", model="resnet8_pad")
    model = build_model("resnet8", 10, 1)
    prunus.save(model, path, model_name="resnet8", num_classes=10, in_channels=1, classes=tuple("abcdefghij"))
    with pytest.raises(ModelError, match="a, b, c"):
        compress(tmp_path / "c", checkpoint=path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FileFormatError, match=r"c\.safetensors"):
        compress(tmp_path / "d", checkpoint=path)
    assert not (tmp_path / "d" / "dense.safetensors").exists()


def test_a_failed_verification_stops_the_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> Any:
        return dataclasses.replace(
            verify(*arguments), passed=False, max_relative_error=float("nan"), failure="outputs differ"
        )

    monkeypatch.setattr(schedules, "verify", failing)
    with pytest.raises(VerificationError, match="outputs differ"):
        compress(tmp_path / "a", checkpoint=finished / "dense.safetensors")
    found = read_json(tmp_path / "a" / "verification.json")
    assert (found["passed"], found["max_relative_error"]) == (False, None)
    assert not (tmp_path / "a" / "model.safetensors").exists()
    with pytest.raises(VerificationError):
        compress(tmp_path / "a", checkpoint=finished / "dense.safetensors")


def test_sparse_training_comes_before_the_removal_and_has_rows_and_a_chart_of_its_own(
    finished: Path, tmp_path: Path
) -> None:
    settings = {"checkpoint": finished / "dense.safetensors", "sparse_epochs": 2, "rho": 0.5, "finetune_epochs": 0}
    out, said = compress(tmp_path / "a", **settings, recover="none")  # the weights are as the training left them
    assert "sparse     training with group_lasso, rho 0.5, for 2 epochs" in said
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"], row["rho"]) for row in rows] == [("sparse", 1, 0.5), ("sparse", 2, 0.5)]
    assert read_json(out / "summary.json")["epochs"] == {"dense": 0, "sparse": 2, "search": 0, "finetune": 0}
    assert 'id="chart-sparsity"' in (out / "report.html").read_text()
    weight = "layer3.0.conv1.weight"
    before, after = (load_tensors(path / "dense.safetensors")[0][weight] for path in (finished, out))
    assert torch.equal(before, after), "the dense network is the one from before"
    small = load_tensors(out / "model.safetensors")[0][weight]
    assert small.flatten(1).norm(dim=1).max() < 0.9 * before.flatten(1).norm(dim=1).max()
    plain, _ = compress(tmp_path / "b", checkpoint=finished / "dense.safetensors", finetune_epochs=0)
    assert 'id="chart-sparsity"' not in (plain / "report.html").read_text()


@pytest.mark.parametrize(
    ("normalize", "recover", "judged_after", "refitted_on"),
    [
        (None, "reconstruct", "reconstruct", [64] * 4),
        ("max", "compensate,recalibrate", "recalibrate", [64] * 16),
        ("cost", "none", "recalibrate", [64] * 16),
    ],
)
def test_calibrated_options_are_the_best_of_the_table_and_are_used(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    normalize: str | None,
    recover: str,
    judged_after: str,
    refitted_on: list[int],
) -> None:
    asked = []

    def watched(*arguments: Any, **settings: Any) -> prunus.OptionsChoice:
        asked.append((settings["recover"], [len(batch) for batch in settings["recovery_images"]]))
        return prunus.choose_options(*arguments, **settings)

    monkeypatch.setattr(options, "choose_options", watched)
    monkeypatch.setitem(calibrated.GRIDS, "channel_sparsity", ({"degree": ("activation",), "lam": (0.0, 2.0)},))
    settings: dict[str, Any] = {"checkpoint": finished / "dense.safetensors", "finetune_epochs": 0}
    settings |= SPARSITY | {"calibrate_options": True, "normalize": normalize, "recover": recover}
    out, said = compress(tmp_path / "a", **settings)
    table = read_json(out / "options.json")
    best = max(table["ranking"], key=lambda row: row["accuracy"])
    assert table["chosen"] == best["options"] == read_json(out / "summary.json")["options"]
    how = {"reconstruct": "refitted", "recalibrate": "recalibrated"}[judged_after]
    assert (
        f"options    degree activation, lam {best['options']['lam']}: {best['accuracy']:.2%} {how}, not trained" in said
    )
    assert table["recovery"] == judged_after
    assert asked == [(judged_after, refitted_on)]
    plan = PruningPlan.from_json(out / "plan.json")
    assert (plan.after.macs, plan.after.params) == (best["macs"], best["params"])
    (out / "options.json").write_text('{"ranking": []}')
    (out / "summary.json").unlink()
    with pytest.raises(FileFormatError, match="no entry 'chosen'; delete it to choose them again"):
        compress(out, **settings)


def test_the_test_images_are_looked_at_once_by_each_network(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_images = load_data("digits").test_images
    looks = []

    def watched(look: Callable[..., Any]) -> Callable[..., Any]:
        def watching(model: Any, images: torch.Tensor, *rest: Any, **options: Any) -> Any:
            looks.append(torch.equal(images, test_images))
            return look(model, images, *rest, **options)

        return watching

    monkeypatch.setattr("prunus.training.loop.evaluate", watched(evaluate))
    monkeypatch.setattr("prunus.pipeline.finish.predict_classes", watched(predict_classes))
    compress(tmp_path / "a", checkpoint=finished / "dense.safetensors", finetune_epochs=2)
    assert looks == [False, False, True, True]


def test_rounds_leave_half_of_the_epochs_or_more_to_the_last() -> None:
    assert rounds_epochs(15, 3) == (3, 9)
    assert rounds_epochs(6, 3) == (1, 4)
    assert rounds_epochs(2, 3) == (0, 2)
    assert rounds_epochs(7, 1) == (0, 7)
