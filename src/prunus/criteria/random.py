"""The control: what any criterion has to beat."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from prunus.criteria.values import LayerValues


def random(layer: LayerValues, seed: int = 0) -> Tensor:
    """Return numbers drawn evenly from [0, 1), (C_out,), the same for the same seed and layer name on any machine."""
    digest = hashlib.sha256(f"{seed}:{layer.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.rand(layer.weight.shape[0], generator=generator, dtype=torch.float64)
