"""What leaves Prunus: model files and what they cost on a device."""

from __future__ import annotations

from prunus.deploy.header import ModelHeader
from prunus.deploy.latency import Latency, measure_latency, processor_name
from prunus.deploy.saving import header_bytes, load, read_header, save

__all__ = [
    "Latency",
    "ModelHeader",
    "header_bytes",
    "load",
    "measure_latency",
    "processor_name",
    "read_header",
    "save",
]
