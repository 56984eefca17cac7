"""Random states: the global generators of torch, CUDA, NumPy and Python, and the generator of an epoch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.errors import FileFormatError


def epoch_generator(seed: int, stage: str, epoch: int, device: torch.device) -> torch.Generator:
    """Derive an epoch's generator from its name alone, so that it needs no memory of the epochs before."""
    return torch.Generator(device).manual_seed(_number(f"{seed}/{stage}/{epoch}"))


def generator_state(generator: torch.Generator) -> str:
    """Read a generator's state, in hexadecimal."""
    return generator.get_state().numpy().tobytes().hex()


def set_generator_state(generator: torch.Generator, state: str) -> None:
    """Put back what `generator_state` read; a generator on another kind of device, or without one, stays as it is."""
    if len(state) == 2 * len(generator.get_state()):
        generator.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))


def seed_everything(seed: int, stage: str) -> None:
    """Seed the global generators, of which dropout draws, so that a training depends on its name alone."""
    number = _number(f"{seed}/{stage}")
    torch.manual_seed(number)  # CUDA's too
    np.random.seed(number % 2**32)
    random.seed(number)


def seed_step(name: str) -> None:
    """Seed torch's generators for one step of a process whose states no checkpoint has."""
    torch.manual_seed(_number(name))


def capture_random_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the global generators: what is long as tensors, the rest as a JSON-able dict."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    key = numpy_state["state"]["key"]
    version, words, kept = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(key.astype(np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    position, has_gauss, gauss = numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]
    return tensors, {"numpy": [position, has_gauss, gauss], "python": [version, kept]}


def restore_random_states(tensors: Mapping[str, Tensor], rest: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators back as `capture_random_states` read them; FileFormatError where they do not fit."""
    try:
        version, kept = rest["python"]
        random.setstate((version, tuple(tensors["python"].tolist()), kept))
        position, has_gauss, gauss = rest["numpy"]
        if not 0 <= position <= len(tensors["numpy"]):  # NumPy takes any, and would read beyond the end
            raise ValueError(f"position {position} of NumPy's generator is out of range")
        np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(tensors["torch"])
        if device.type == "cuda" and "cuda" in tensors:  # a training may go on on another kind of device
            torch.cuda.set_rng_state(tensors["cuda"], device)
    except (LookupError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise FileFormatError(f"the checkpoint has random states that cannot be restored: {error}") from error


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
