"""Image data: loading, caching, splitting and augmentation."""

from __future__ import annotations

from prunus.data.augment import augment, normalize
from prunus.data.dataset import ImageData, Split
from prunus.data.load import load_data

__all__ = ["ImageData", "Split", "augment", "load_data", "normalize"]
