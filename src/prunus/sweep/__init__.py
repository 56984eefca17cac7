"""Many runs at once: a grid or a search of settings, each a run of `prunus compress` in a process of its own.

A sweep knows no more of a run than its folder and its exit code, so whatever ends a cell is survived: it goes on by the
checkpoints in its own folder.
"""

from __future__ import annotations

from prunus.sweep.cells import Job
from prunus.sweep.results import Row, read_rows
from prunus.sweep.run import run_sweep
from prunus.sweep.spec import Sweep, load_sweep

__all__ = ["Job", "Row", "Sweep", "load_sweep", "read_rows", "run_sweep"]
