"""Prunus's own model files, run by PyTorch: networks of the zoo without further ado."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunus.cost import count_cost
from prunus.deploy.file_info import FileInfo
from prunus.deploy.runner import Array, Runner
from prunus.deploy.saving import load, read_header
from prunus.errors import FileFormatError


def open_file(path: Path, threads: int) -> Runner:
    """Load a model file that `prunus.save` wrote."""
    header = read_header(path)
    model = load(path)
    if header.input_shape is None:
        raise FileFormatError(
            f"the model file {path} does not say what images the network takes: save with input_shape"
        )
    cost = count_cost(model, torch.zeros(1, *header.input_shape))
    info = FileInfo(
        prunus_version=header.prunus_version,
        format="safetensors",
        model=header.model,
        input_shape=header.input_shape,
        classes=header.classes,
        mean=header.mean,
        std=header.std,
        plan=header.plan,
        params=cost.params,
        macs=cost.macs,
    )
    return Runner(info, f"PyTorch {torch.__version__}", torch_call(model.float(), threads))


def torch_call(module: nn.Module, threads: int) -> Callable[[Array], Array]:
    """Make a function from arrays to arrays of a module; the process's number of threads is put back after a call."""

    def call(images: Array) -> Array:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                output = module(torch.from_numpy(images))
        finally:
            torch.set_num_threads(before)
        return np.asarray(output.numpy(), dtype=np.float32)

    return call
