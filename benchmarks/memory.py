#!/usr/bin/env python3
"""Measure the memory that pruning one network takes; `analysis.py` runs this in a fresh process for each.

    python benchmarks/memory.py timm:resnet50     one line of JSON

Linux says how much memory a process held at most since it was asked to forget (VmHWM). Elsewhere the peak is that since
it began, and the rise is what goes beyond the peak of building the network. What Prunus loads late counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from analysis import run_prunus, weight
from networks import build

_PROCESS = Path("/proc/self")


def main() -> None:
    """Measure the network that the command line names."""
    torch.set_num_threads(1)
    print(json.dumps(weigh(sys.argv[1])))


def weigh(spec: str) -> dict[str, Any]:
    """Prune a network, and return its size, that of the pruned copy and the most memory held beyond what was before."""
    model, inputs = build(spec)
    gc.collect()
    _give_back()
    forgotten = _forget_peak()
    before = _status("VmRSS") if forgotten else _peak_since_start()
    _, pruned = run_prunus(model, inputs)
    rise = (_status("VmHWM") if forgotten else _peak_since_start()) - before
    sizes = {"model_bytes": weight(model), "pruned_bytes": weight(pruned), "rise_bytes": rise}
    return {"network": spec, **sizes, "measured": "VmHWM" if forgotten else "ru_maxrss"}


def _give_back() -> None:
    """Hand memory that was freed back to the system, so that using it again counts."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> bool:
    """Set the peak to what is held now; False where the system cannot."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
        return _status("VmHWM") <= _status("VmRSS") + 2**20
    except (OSError, ValueError):
        return False


def _status(key: str) -> int:
    """Read a size in bytes from the process's status."""
    for line in (_PROCESS / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"no {key} in {_PROCESS / 'status'}")


def _peak_since_start() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
