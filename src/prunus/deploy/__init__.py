"""What leaves Prunus: model files, files for other runtimes, and what they cost on a device."""

from __future__ import annotations

from prunus.deploy.comparing import Comparison, Samples
from prunus.deploy.exporting import Exported, export, export_each
from prunus.deploy.file_info import FileInfo
from prunus.deploy.formats import FORMATS, WRITTEN, find_format, open_exported
from prunus.deploy.header import ModelHeader
from prunus.deploy.latency import Latency, measure_latency, processor_name
from prunus.deploy.runner import Runner
from prunus.deploy.saving import header_bytes, load, read_header, save

__all__ = [
    "FORMATS",
    "WRITTEN",
    "Comparison",
    "Exported",
    "FileInfo",
    "Latency",
    "ModelHeader",
    "Runner",
    "Samples",
    "export",
    "export_each",
    "find_format",
    "header_bytes",
    "load",
    "measure_latency",
    "open_exported",
    "processor_name",
    "read_header",
    "save",
]
