"""What a run is told: one validated, frozen object, from flags and a YAML file.

Keys of the file are the long flags' names with underscores.
"""

from __future__ import annotations

from prunus.config.loading import judge, load_config
from prunus.config.messages import flag_name
from prunus.config.run_config import MAY_CHANGE, RunConfig

__all__ = ["MAY_CHANGE", "RunConfig", "flag_name", "judge", "load_config"]
