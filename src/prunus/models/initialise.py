"""The initial weights of every network here."""

from __future__ import annotations

from torch import nn


def reinitialise(model: nn.Module) -> None:
    """Draw new weights as `he_initialise` does, and forget what BatchNorm has seen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
    he_initialise(model)


def he_initialise(model: nn.Module) -> None:
    """Draw convolutions from He's normal distribution and the classifier from one of unit gain.

    The variance is 2/fan_in before a ReLU and 1/fan_in in the classifier, which no ReLU follows; fan_in counts one
    filter's inputs, so it also suits depthwise convolutions. BatchNorm starts as the identity, biases at zero. The
    global random state decides the draw. Source: He et al. 2015, arXiv 1502.01852.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
