"""How the scores of one layer are made to compare with those of another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunus.criteria.registry import Normalize
from prunus.criteria.values import LayerValues

Scores = npt.NDArray[np.float64]


def normalized(scores: Scores, normalize: Normalize, values: LayerValues, saved: Scores | None) -> Scores:
    """Return a layer's scores as numbers that compare across layers, (C_out,).

    Args:
        scores: what the criterion says, (C_out,).
        normalize: how; `prunus.score` says what each does.
        values: the layer.
        saved: what removing each channel saves, (C_out,): MACs for ``"cost"``, picoseconds for ``"latency"``.
    """
    if normalize == "gaussian":
        spread = float(scores.std())
        apart = scores - scores.mean()
        is_flat = spread <= 1e-12 * np.abs(scores).max()  # equal scores differ by rounding
        return np.zeros_like(scores) if is_flat else apart / spread
    if normalize == "size":
        return scores / (values.weight[0].numel() + (values.bias is not None))
    if normalize in ("cost", "latency"):
        assert saved is not None
        return scores / np.maximum(saved, 1)  # a channel of an embedding alone saves none
    if normalize == "none":
        return scores
    unit = float(scores.mean() if normalize == "mean" else scores.max())
    return scores / unit if unit > 0 else scores  # a layer of zeros stays one
