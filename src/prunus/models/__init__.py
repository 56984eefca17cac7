"""Networks by name: `build_model("resnet20", num_classes=10)` for those in MODELS, `load_network` for any."""

from __future__ import annotations

from prunus.models.registry import MODELS, build_model
from prunus.models.sources import Network, Source, find_network, load_network

__all__ = ["MODELS", "Network", "Source", "build_model", "find_network", "load_network"]
