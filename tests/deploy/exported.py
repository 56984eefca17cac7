"""Networks to export: pruned at random, with BatchNorm statistics that no wrong step survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.config import RunConfig
from prunus.data import ImageData, load_data

CLASSES = ("ant", "bee", "cat", "dog", "éland")
INFO: dict[str, Any] = {"classes": CLASSES, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.25, 0.3)}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics and factors of its own, mild enough for deep networks."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.6, 1.5),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.3, 0.3),
            ):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def pruned(name: str, ratio: float = 0.5, num_classes: int = 10, in_channels: int = 3, side: int = 32) -> nn.Module:
    """Build a network of the zoo and remove half of every group's channels, whichever."""
    torch.manual_seed(0)
    model = randomise(prunus.build_model(name, num_classes=num_classes, in_channels=in_channels))
    example = torch.randn(1, in_channels, side, side)
    return prunus.prune(model, example, criterion="random", pruning_ratio=ratio).model.eval()


def write_digits_run(folder: Path) -> ImageData:
    """Leave what a finished run on the digits leaves, with networks that nobody trained."""
    data = load_data("digits")
    torch.manual_seed(0)
    dense = randomise(prunus.build_model("resnet8", num_classes=10, in_channels=1))
    result = prunus.prune(dense, torch.randn(1, 1, 8, 8), pruning_ratio=0.5, criterion="l1_norm")
    identity: dict[str, Any] = {
        "model_name": "resnet8",
        "num_classes": 10,
        "in_channels": 1,
        "input_shape": (1, 8, 8),
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
    }
    config = RunConfig.model_validate({"model": "resnet8", "data": "digits", "macs": 0.5, "out": folder})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    prunus.save(dense, folder / "dense.safetensors", **identity)
    prunus.save(result.model, folder / "model.safetensors", plan=result.plan, **identity)
    return data
