"""The zoo by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from prunus.errors import ModelError
from prunus.models import densenet, googlenet, mobilenet, resnet, shufflenet, squeezenet, vgg

MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19_bn": vgg.vgg19_bn,
    "googlenet": googlenet.googlenet,
    "resnet8": resnet.resnet8,
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet44": resnet.resnet44,
    "resnet56": resnet.resnet56,
    "resnet110": resnet.resnet110,
    "resnet8_pad": resnet.resnet8_pad,
    "resnet20_pad": resnet.resnet20_pad,
    "resnet32_pad": resnet.resnet32_pad,
    "resnet44_pad": resnet.resnet44_pad,
    "resnet56_pad": resnet.resnet56_pad,
    "resnet110_pad": resnet.resnet110_pad,
    "mobilenetv2": mobilenet.mobilenetv2,
    "mobilenetv2_half": mobilenet.mobilenetv2_half,
    "shufflenetv2": shufflenet.shufflenetv2,
    "densenet40": densenet.densenet40,
    "squeezenet": squeezenet.squeezenet,
}


def build_model(name: str, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build a network of the zoo, with He-initialised weights drawn from the global random state.

    Args:
        name: a key of MODELS.
        num_classes: length of the logits, at least 1.
        in_channels: channels of the images, at least 1.

    Raises:
        ModelError: the name is unknown, or a count is below 1.
    """
    builder = MODELS.get(name)
    if builder is None:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"There is no model named {name!r}.{hint} The models are: {', '.join(sorted(MODELS))}.")
    for what, count in (("num_classes", num_classes), ("in_channels", in_channels)):
        if count < 1:
            raise ModelError(f"{name}: {what} is {count}, and must be at least 1.")
    return builder(num_classes=num_classes, in_channels=in_channels)
