"""Networks for small images: build_model("resnet20", num_classes=10) or any name in MODELS."""

from __future__ import annotations

from prunus.models.registry import MODELS, build_model

__all__ = ["MODELS", "build_model"]
