"""What leaves Prunus: model files, files for other runtimes, and what they cost on a device."""

from __future__ import annotations

from prunus.deploy.benchmarking import BenchRow, bench_files
from prunus.deploy.comparing import Comparison, Samples
from prunus.deploy.exporting import Exported, export, export_each
from prunus.deploy.file_info import FileInfo
from prunus.deploy.formats import FORMATS, WRITTEN, files_of, find_format, format_of, open_exported
from prunus.deploy.header import ModelHeader
from prunus.deploy.int8_simulation import Int8Simulation
from prunus.deploy.latency import Latency, measure_latency, processor_name
from prunus.deploy.quantizing import Quantized, quantize
from prunus.deploy.runner import Runner
from prunus.deploy.saving import header_bytes, load, read_header, save

__all__ = [
    "FORMATS",
    "WRITTEN",
    "BenchRow",
    "Comparison",
    "Exported",
    "FileInfo",
    "Int8Simulation",
    "Latency",
    "ModelHeader",
    "Quantized",
    "Runner",
    "Samples",
    "bench_files",
    "export",
    "export_each",
    "files_of",
    "find_format",
    "format_of",
    "header_bytes",
    "load",
    "measure_latency",
    "open_exported",
    "processor_name",
    "quantize",
    "read_header",
    "save",
]
