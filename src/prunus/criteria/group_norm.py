"""The size of everything that goes with a channel."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.values import LayerValues
from prunus.errors import ConfigError


def group_norm(layer: LayerValues) -> Tensor:
    """Return the L2 norm of all parameters that go with each channel, (C_out,), ≥ 0 (DepGraph, arXiv:2301.12900).

    That is the filters and biases of all layers that produce it, the BatchNorm vectors, and the input slices of all
    layers that consume it. An element on two of the channel's slices (of a convolution inside a residual sum) counts
    twice. All members of a coupled channel score alike; one that always stays scores by its filter.

    Raises:
        ConfigError: the field was not filled in, which `prunus.score` does.
    """
    if layer.coupled_norm is None:
        raise ConfigError(
            f"group_norm needs coupled_norm of layer {layer.name!r}; prunus.score(model, graph, 'group_norm') fills it "
            "in, for a criterion of your own with needs=('coupled_norm',)."
        )
    own: Tensor = torch.linalg.vector_norm(layer.weight.flatten(1), dim=1)
    return torch.where(layer.coupled_norm.isnan(), own, layer.coupled_norm)
