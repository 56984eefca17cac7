"""How far a network's outputs move without a channel, once the layers that read it are refitted."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.calibration import measured
from prunus.criteria.values import LayerValues


def refit_error(layer: LayerValues) -> Tensor:
    """Return the squared change of the outputs when a channel goes after all that are worth less, (C_out,), ≥ 0.

    Second-order, as in the optimal brain surgeon (Hassibi and Stork 1993): layers that read the channel are refitted by
    least squares to make do without it, as `prunus.reconstruct` does afterwards, and what remains of the error in each
    of their outputs is carried to the network's by squared gradients. An error in a channel's mean over an image adds
    up over positions, one that differs from place to place does not, and each is refitted for itself. Channels go one
    by one, so that of two alike only the first is free. This is ours, in the spirit of `delivered_energy`, which leaves
    out that others can step in, and what an error does further on. Images need no labels.

    All members of a coupled channel score alike; one that no layer reads scores as the layer's highest, 1 if there is
    none: nothing says that it can go.

    Raises:
        ConfigError: nothing was measured: there is no calibration.
    """
    errors = measured(layer.refit_error, "refit_error", "refit_error", layer.name)
    known = errors[~errors.isnan()]
    return torch.nan_to_num(errors, nan=float(known.max()) if len(known) else 1.0)
