"""Mixup: every image of a batch blended with another, and their classes likewise (Zhang 2018, arXiv:1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Blend:
    """Which images are blended in, `order` (N,), and what share of the result is the image itself, in [1/2, 1]."""

    order: Tensor
    share: float

    def images(self, batch: Tensor) -> Tensor:
        """Blend a batch of network inputs, (N, C, H, W)."""
        return torch.lerp(batch[self.order], batch, self.share)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return the probabilities (N, classes) that the labels (N,) become."""
        sure = F.one_hot(labels, classes).float()
        return torch.lerp(sure[self.order], sure, self.share)


def draw_blend(count: int, alpha: float, generator: torch.Generator, device: torch.device) -> Blend:
    """Draw the blend of a batch of `count` images; the share is one number for all of them, from Beta(α, α).

    The heavier one of a pair counts as the image itself, which changes nothing in distribution.
    """
    order = torch.randperm(count, generator=generator, device=generator.device).to(device)
    # torch draws from a Beta distribution by the global generator alone.
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return Blend(order, max(share, 1 - share))
