"""How much memory a file needs: run as a process of its own, it prints the bytes, or null where nobody can tell."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

from prunus.deploy.benchmarking import noise
from prunus.deploy.formats import format_of, open_exported

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RUNS = 3


def main(file: str, threads: str, batch: str) -> None:
    """Load the runtime, note the memory, open the file, run it, and print how far memory rose at most."""
    for module in format_of(file).running:
        importlib.import_module(module)
    before = _resident("VmRSS")
    if before is not None:
        _RESET.write_text("5")  # the peak counts from here
    runner = open_exported(file, int(threads))
    images = noise(runner.info.input_shape, int(batch))
    for _ in range(_RUNS):
        runner(images)
    peak = _resident("VmHWM")
    print(json.dumps(None if before is None or peak is None else max(0, peak - before)))


def _resident(what: str) -> int | None:
    """Read a figure of this process from the system, in bytes; None where there is none (not on Linux)."""
    if not _STATUS.is_file() or not _RESET.exists():
        return None
    found = re.search(rf"^{what}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
