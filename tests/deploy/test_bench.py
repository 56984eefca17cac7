"""Timing files side by side: in turn, with what was asked for, and with MACs beside the clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.exported import write_digits_run
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.deploy import FileInfo, Runner, bench_files
from prunus.deploy.benchmarking import peak_memory, time_in_turns
from prunus.deploy.runner import Array
from prunus.errors import ConfigError
from prunus.report.folder import Bench, read_bench


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="prunus", env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    write_digits_run(folder)
    return folder


def test_files_take_turns_and_those_for_one_image_take_a_batch_in_pieces() -> None:
    calls: list[tuple[str, int]] = []

    def runner(name: str, batch: int | None) -> Runner:
        def infer(images: Array) -> Array:
            calls.append((name, len(images)))
            return np.zeros((len(images), 2), np.float32)

        return Runner(FileInfo(format="x", input_shape=(1, 2, 2), batch=batch), "X", infer)

    times = time_in_turns({"a": runner("a", None), "b": runner("b", 1)}, batch=2, runs=3, warmup=1)
    assert calls == [("a", 2), ("b", 1), ("b", 1)] * 4
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}


def test_a_run_is_timed_dense_beside_pruned(run: Path) -> None:
    result = command("bench", str(run), "--runtime", "torch", "--runs", "7", "--batch", "2", "--no-memory", "--json")
    assert result.exit_code == 0, result.output
    dense, pruned = json.loads(result.stdout)
    assert read_bench(run / "bench.json") == tuple(Bench.model_validate(row) for row in (dense, pruned))
    assert (dense["name"], pruned["name"]) == ("dense (torch)", "pruned (torch)")
    macs = [prunus.load(run / f"{name}.safetensors") for name in ("dense", "model")]
    counts = [prunus.count_cost(model, prunus.load_data("digits").test_images[:1].float()).macs for model in macs]
    assert [dense["macs"], pruned["macs"]] == counts
    assert pruned["macs_reduction"] == counts[0] / counts[1] and dense["macs_reduction"] == 1
    assert pruned["speedup"] == dense["median_ms"] / pruned["median_ms"] and dense["speedup"] == 1
    for row, name in ((dense, "dense"), (pruned, "model")):
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert (row["runs"], row["batch"], row["threads"], row["peak_memory_bytes"]) == (7, 2, 1, None)
        assert row["size_bytes"] == (run / f"{name}.safetensors").stat().st_size
        assert row["processor"]


def test_a_run_is_written_for_the_runtimes_that_need_files(run: Path) -> None:
    before = {*run.rglob("*"), run / "bench.json"}
    result = command("bench", str(run), "--runtime", "ncnn,torch", "--runs", "2", "--no-memory")
    assert result.exit_code == 0, result.output
    order = [result.stdout.index(name) for name in ("dense (ncnn)", "pruned (ncnn)", "dense (torch)")]
    assert order == sorted(order) and "fewer" in result.stdout
    assert set(run.rglob("*")) == before


@pytest.mark.slow
def test_peak_memory_is_that_of_the_file(run: Path, tmp_path: Path) -> None:
    large = tmp_path / "vgg.safetensors"
    prunus.save(
        prunus.build_model("vgg16_bn"),
        large,
        model_name="vgg16_bn",
        num_classes=10,
        in_channels=3,
        input_shape=(3, 32, 32),
    )
    rows = bench_files(
        {name: (file,) for name, file in (("large", large), ("small", run / "dense.safetensors"))}, runs=1
    )
    small, found = rows[1].peak_memory_bytes, rows[0].peak_memory_bytes
    assert small is not None and found is not None
    assert large.stat().st_size < found - small < 4 * large.stat().st_size
    assert peak_memory(run / "dense.safetensors") is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--runtime", "tflite"], "--runtime tflite: there is no such runtime"),
        (["RUN", "RUN"], "name one run folder, or files"),
        (["nothing.onnx"], "there is no such file"),
        (["RUN/model.safetensors", "--runtime", "ncnn"], "none of the files is for the runtimes ncnn"),
        (["RUN/config.yaml"], "none of the endings"),
        (["HOSTILE"], "cut short, damaged or no .pt2 file"),
    ],
)
def test_mistakes_and_hostile_files_are_one_message(
    arguments: list[str], words: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.pt2").write_bytes(b"\x80\x04cos\nsystem\n")
    places = (("RUN", str(run)), ("HOSTILE", str(tmp_path / "a.pt2")))
    for name, path in places:
        arguments = [argument.replace(name, path) for argument in arguments]
    result = command("bench", *arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert result.stderr.startswith("error: ") and words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_nothing_to_time_is_said() -> None:
    with pytest.raises(ConfigError, match="name a run folder or exported files"):
        bench_files({})
