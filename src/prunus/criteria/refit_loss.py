"""What the loss rises by without a channel, once the layers that read it are refitted."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.calibration import measured
from prunus.criteria.values import LayerValues


def refit_loss(layer: LayerValues) -> Tensor:
    """Return what the loss rises by, in nats, when a channel goes after all that are worth less, (C_out,), ≥ 0.

    Second-order, as in the optimal brain surgeon (Hassibi and Stork 1993): layers that read the channel are refitted by
    least squares to make do without it, as `prunus.reconstruct` does afterwards, and what remains of the error in each
    of their outputs counts half its square times the Fisher information of that output (the diagonal, with classes
    drawn by the network's own probabilities; Theis et al. 2018, arXiv:1801.05787, and Wang et al. 2019,
    arXiv:1905.05934, prune by it). Channels go one by one, so that of two alike only the first is free. Kernels are
    taken apart: what a channel has at one position explains nothing at another. This is ours, in the spirit of
    `delivered_energy`, which leaves both out: that others can step in, and what the loss makes of an error.

    All members of a coupled channel score alike; one that no layer reads scores as the layer's highest, 1 if there is
    none: nothing says that it can go.

    Raises:
        ConfigError: nothing was measured: there is no calibration.
    """
    losses = measured(layer.refit_loss, "refit_loss", "refit_loss", layer.name)
    known = losses[~losses.isnan()]
    return torch.nan_to_num(losses, nan=float(known.max()) if len(known) else 1.0)
