"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.deploy import processor_name

_PACKAGES = ("torch", "numpy", "scipy", "safetensors", "pillow")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Collect versions, processor, threads, commit and command line, as plain data for environment.json."""
    return {
        "prunus": prunus.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "processor": processor_name("cpu"),
        "device": str(device),
        "device_name": processor_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
    }


def commit() -> str | None:
    """Name the commit of the checkout that this Prunus runs from, "-dirty" where files differ; None outside of one."""
    source = Path(prunus.__file__).parent
    head = _git(source, "rev-parse", "--short=12", "HEAD")
    # An installed copy may lie inside somebody else's checkout: only a tracked one says anything.
    if not head or not _git(source, "ls-files", "__init__.py"):
        return None
    return f"{head}-dirty" if _git(source, "status", "--porcelain", "--", str(source)) else head


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
