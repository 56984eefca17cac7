"""A folder as model hubs expect it: model.safetensors, config.json, and a model card written from the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

import prunus
from prunus.deploy import ModelHeader, read_header
from prunus.errors import ConfigError
from prunus.files import atomic_write_bytes, atomic_write_json, atomic_write_text, load_tensors, read_bytes
from prunus.pipeline.subjects import model_file
from prunus.report import Figures, Summary, numbers, read_summary

HUB = "huggingface"
"""What `--to` calls such a folder."""


def write_hub_folder(source: str, folder: Path, *, dense: bool = False) -> Path:
    """Write the folder of a run's network, or of a model file, and return it.

    The weights are the model file itself, so that `prunus.load` and `prunus predict` take the folder's as well.

    Raises:
        ConfigError: `source` is neither a run nor a model file, so that there is nothing trained to publish.
        FileFormatError: the model file is damaged.
    """
    file = model_file(source)
    if file is None:
        raise ConfigError(f"--to {HUB} takes a run folder or a model file, and {source} is a network's name")
    run = file.parent if Path(source).is_dir() else None
    if dense and run is not None:
        file = run / "dense.safetensors"
    header = read_header(file)
    summary = read_summary(run / "summary.json") if run is not None and (run / "summary.json").is_file() else None
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / "model.safetensors", read_bytes(file, "model file"))
    params = _count_params(folder / "model.safetensors")
    atomic_write_json(folder / "config.json", _config(header, params))
    atomic_write_text(folder / "README.md", _card(header, summary, params, dense=dense))
    return folder


def _count_params(file: Path) -> int:
    """Count the numbers that training changed: running statistics are none of them."""
    tensors, _ = load_tensors(file, "model file")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(statistics))


def _config(header: ModelHeader, params: int) -> dict[str, Any]:
    names = dict(enumerate(header.classes))
    return {
        "library_name": "prunus",
        "model_type": header.model or "custom",
        "num_classes": header.num_classes or len(header.classes) or None,
        "in_channels": header.in_channels,
        "input_size": header.input_shape,
        "mean": header.mean,
        "std": header.std,
        "id2label": {str(number): name for number, name in names.items()},
        "label2id": {name: number for number, name in names.items()},
        "num_parameters": params,
        "pruned": header.plan is not None,
        "prunus_version": header.prunus_version,
    }


def _card(header: ModelHeader, summary: Summary | None, params: int, *, dense: bool) -> str:
    name = header.model or "A network"
    front: dict[str, Any] = {
        "library_name": "prunus",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", *([] if dense else ["pruning", "channel-pruning"])],
    }
    figures = None if summary is None else summary.dense if dense else summary.pruned
    if summary is not None and figures is not None and figures.test_accuracy is not None:
        metric = {"type": "accuracy", "value": figures.test_accuracy, "name": "test accuracy"}
        result = {"task": {"type": "image-classification"}, "dataset": {"name": summary.data, "type": summary.data}}
        front["model-index"] = [{"name": name, "results": [result | {"metrics": [metric]}]}]
    state = "as trained, before pruning" if dense else "with channels removed" if header.plan else ""
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {name}{', ' if state else ''}{state}",
        "",
        *(_results(summary) if summary is not None else [f"{numbers.count(params)} parameters."]),
        "",
        "## Use",
        "",
        *_use(header),
        "",
        "## Input",
        "",
        *_input(header),
        "",
        f"Written by prunus {prunus.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _results(summary: Summary) -> list[str]:
    """Lay out the run's figures, dense beside pruned, and what they came from."""

    def row(what: str, figures: Figures) -> str:
        latency = numbers.milliseconds(figures.latency_ms)
        return (
            f"| {what} | {numbers.percent(figures.test_accuracy)} | {numbers.count(figures.params)} | "
            f"{numbers.count(figures.macs)} | {numbers.size(figures.size_bytes)} | {latency} |"
        )

    epochs = ", ".join(f"{count} {stage}" for stage, count in summary.epochs.items() if count)
    return [
        f"Data: {summary.data}. Method: {summary.method}. Budget: {summary.budget_text}. Seed: {summary.seed}. "
        f"Epochs: {epochs or 'none'}. Date: {summary.date[:10]}.",
        "",
        "| network | test accuracy | parameters | MACs | file | latency |",
        "| --- | --- | --- | --- | --- | --- |",
        row("dense", summary.dense),
        row("pruned", summary.pruned),
        "",
        f"Latency is that of one image on one thread of {summary.device}; MACs are of one image. One run, one seed.",
    ]


def _use(header: ModelHeader) -> list[str]:
    load = 'model = prunus.load("model.safetensors")'
    if header.model is None:
        load = 'model = prunus.load("model.safetensors", factory=lambda: MyNet())  # the network before pruning'
    return [
        "```python",
        "import prunus",
        "",
        load,
        "```",
        "",
        "```sh",
        "prunus predict model.safetensors photo.jpg",
        "```",
    ]


def _input(header: ModelHeader) -> list[str]:
    shape = "×".join(map(str, header.input_shape)) if header.input_shape else "not recorded"
    classes = json.dumps(list(header.classes), ensure_ascii=False)
    return [
        f"float32 images (channels, height, width) of {shape}, `(pixel / 255 - mean) / std` by channel, with mean "
        f"`{list(header.mean)}` and std `{list(header.std)}`. Classes, in the order of the logits: {classes}.",
    ]
