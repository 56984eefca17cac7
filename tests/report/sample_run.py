"""A run folder as the pipeline leaves it, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LAYERS = ["conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2))]


def summary() -> dict[str, Any]:
    """A ResNet-20 on CIFAR-10 (JPEG) at half its bytes."""
    widths = [
        {"layer": layer, "before": 16 * 2 ** max(0, int(layer[5]) - 1) if layer != "conv1" else 16, "after": 9}
        for layer in LAYERS
    ]
    return {
        "data": "CIFAR-10 (JPEG)",
        "model": "resnet20",
        "method": "channel-sparsity",
        "budget": {"size": "0.64MB", "macs": None, "params": None, "pruning_ratio": None},
        "date": "2026-11-22T10:11:12+00:00",
        "commit": "0123abc",
        "device": "cpu",
        "seed": 0,
        "epochs": {"dense": 12, "search": 0, "finetune": 6},
        "recovery": [
            {"removal": 1, "step": "removed", "val_accuracy": 0.1164},
            {"removal": 1, "step": "reconstruct", "val_accuracy": 0.8002, "layers_changed": 19, "seconds": 12.3},
        ],
        "dense": {
            "test_accuracy": 0.8712,
            "params": 272474,
            "macs": 40813184,
            "size_bytes": 1113000,
            "latency_ms": 2.345,
        },
        "pruned": {
            "test_accuracy": 0.8664,
            "params": 154321,
            "macs": 23456789,
            "size_bytes": 639872,
            "latency_ms": 1.622,
        },
        "latency": {
            "dense": {
                "median_ms": 2.345,
                "runs": 100,
                "batch": 1,
                "threads": 1,
                "runtime": "PyTorch 2.13",
                "processor": "X1",
            },
            "pruned": {
                "median_ms": 1.622,
                "runs": 100,
                "batch": 1,
                "threads": 1,
                "runtime": "PyTorch 2.13",
                "processor": "X1",
            },
        },
        "files": {"model": "model.safetensors"},
        "widths": widths,
    }


def metrics(
    stages: tuple[tuple[str, int], ...] = (("dense", 12), ("search", 8), ("finetune", 6)),
) -> list[dict[str, Any]]:
    """One line an epoch: accuracies that rise and saturate, losses that fall."""
    rows = []
    for number, (stage, epochs) in enumerate(stages):
        for epoch in range(epochs):
            risen = 1 - 0.6 ** (epoch + 1 + 3 * number)
            rows.append(
                {
                    "stage": stage,
                    "epoch": epoch + 1,
                    "loss": 2.2 - 1.8 * risen,
                    "train_accuracy": 0.1 + 0.82 * risen,
                    "val_loss": 2.3 - 1.75 * risen,
                    "val_accuracy": 0.1 + 0.77 * risen,
                    "learning_rate": 0.1,
                    "seconds": 31.5,
                }
                | (_searched(epoch) if stage == "search" else {})
                | (_sparse(epoch) if stage == "sparse" else {})
            )
    return rows


def _searched(epoch: int) -> dict[str, Any]:
    kept = 1 - 0.4 * (1 - (1 - min(epoch, 5) / 5) ** 3)
    return {
        "kept_channels": round(700 * kept),
        "channels": 700,
        "returned_channels": 3,
        "returned_channels_ever": 9,
        "kept_once_masked": 7,
        "removed_channels": 35 if epoch > 4 else 0,
        "trained_macs": round(40813184 * (0.9 if epoch > 4 else 1)),
        "macs": round(40813184 * kept**2),
    }


def grouped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to the epochs of the search, from the second on, what they left of two groups of 16 and 32 channels."""
    named = {"name": ["conv1", "layer2.0.conv1"], "channels": [16, 32]}
    searched = [row for row in rows if row["stage"] == "search"]
    for row in searched:
        epoch = row["epoch"]
        kept = [16 - epoch, 32 - 2 * epoch]
        counts = {"kept": kept, "returned": [0, 1 if epoch == 3 else 0], "removed": [0, 4 if epoch > 4 else 0]}
        row["groups"] = counts | (named if epoch == 1 else {})
    return rows


def trials() -> dict[str, Any]:
    """A width_search.json: two starts, and three networks that were made of others; the fourth has no loss."""
    found = [
        ([8, 20], 0.9, 0.70, None),
        ([9, 18], 0.8, 0.72, None),
        ([7, 22], 0.7, 0.71, 0),
        ([5, 25], 1.7e308, 0.10, 2),
        ([7, 21], 0.6, 0.75, 2),
    ]
    keys = ("widths", "loss", "accuracy", "parent")
    rows = [dict(zip(keys, values, strict=True)) for values in found]
    return {"fingerprint": "f", "groups": ["conv1", "layer2.0.conv1"], "seconds": 75.0, "trials": rows}


def _sparse(epoch: int) -> dict[str, Any]:
    before = {"index_before": [600, 80, 20, 0]} if epoch == 0 else {}
    return {"index_histogram": [600 - 100 * epoch, 80, 20, 100 * epoch], **before}


def write_run(folder: Path, **changes: Any) -> Path:
    """Write the folder; `changes` replace whole entries of the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary() | changes))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()))
    verification = {
        "passed": True,
        "max_relative_error": 3.1e-15,
        "tolerance": 1e-10,
        "dtype": "float64",
        "samples": 64,
    }
    (folder / "verification.json").write_text(json.dumps(verification | {"outputs": 1, "failure": ""}))
    environment = {"python": "3.11.7", "torch": "2.13.0+cpu", "processor": "X1", "threads": 2, "platform": "Linux"}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "config.yaml").write_text("model: resnet20\ndata: cifar10\nsize: 0.64MB\n")
    (folder / "plan.json").write_text(json.dumps({"groups": [], "notes": []}))
    (folder / "model.safetensors").write_bytes(b"x")
    return folder
