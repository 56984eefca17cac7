"""Settings for every test."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)

# The same examples every time: a red run on somebody's machine is red on everybody's. No clock: machines are busy.
settings.register_profile("prunus", derandomize=True, deadline=None)
settings.load_profile("prunus")
