"""From flags and a file to a RunConfig, or to one error that lists all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from prunus.config.messages import as_list, explain
from prunus.config.plain_yaml import read_mapping
from prunus.config.run_config import RunConfig
from prunus.errors import ConfigError


def load_config(path: Path | str | None = None, flags: Mapping[str, object] | None = None) -> RunConfig:
    """Build the configuration from a YAML file, then flags over it; a ConfigError lists all that is wrong at once."""
    values: dict[str, object] = {}
    if path is not None:
        values = read_mapping(Path(path))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    origins = {key: str(path) for key in values} | dict.fromkeys(given, "")
    config, problems = judge(values | given, origins)
    if config is None:
        raise ConfigError(as_list(problems))
    return config


def judge(values: Mapping[str, object], origins: Mapping[str, str]) -> tuple[RunConfig | None, list[str]]:
    """Build the configuration from values, or list all that is wrong with them.

    `origins` names the file that a key came from, "" for a flag.
    """
    try:
        return RunConfig.model_validate(dict(values)), []
    except ValidationError as error:
        # A union reports once for each of its types; the last, widest one speaks for the key.
        lines = {
            str(detail["loc"][:1]): explain(detail, RunConfig.model_fields, origins)
            for detail in error.errors(include_url=False)
        }
        bad = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    return None, [line for group in lines.values() for line in group] + _disagreements(values, bad)


def _disagreements(merged: Mapping[str, object], bad: set[str]) -> list[str]:
    """Check the options against each other although some are bad, by leaving those out: all errors at once."""
    if not bad:
        return []
    required = {"model": "resnet20", "data": "digits"}
    try:
        RunConfig.model_validate(required | {key: value for key, value in merged.items() if key not in bad})
    except ValidationError as error:
        lines = [
            line for detail in error.errors(include_url=False) for line in explain(detail, RunConfig.model_fields, {})
        ]
        budget_was_bad = bad & {"size", "macs", "params", "latency", "pruning_ratio"}
        return [line for line in lines if not (budget_was_bad and line.startswith("no budget"))]
    return []
