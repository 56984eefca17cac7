"""YAML for configuration: one flat mapping of plain values, nothing that a hostile file could abuse."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from prunus.errors import ConfigError

MAX_BYTES = 100_000
MAX_DEPTH = 8


class _Loader(yaml.SafeLoader):
    """The safe loader, with floats such as 1e-3 that YAML 1.1 takes for text, and without dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_mapping(path: Path) -> dict[str, object]:
    """Read a YAML file that holds one mapping with text keys.

    Refuses aliases (they can blow a few bytes up to gigabytes), tags (they name types to build), deep nesting, repeated
    keys, several documents and files over 100 kB, each with a ConfigError that names the file and the line.
    """
    text = _read_text(path)
    try:
        _refuse_tricks(text, path)
        loaded = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_message(path, error)) from None
    except (ValueError, OverflowError) as error:  # e.g. an integer of ten thousand digits
        raise ConfigError(f"{path} holds a value that cannot be read: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}, not 'key: value' lines such as 'epochs: 30'.")
    odd = [key for key in loaded if not isinstance(key, str)]
    if odd:
        raise ConfigError(f"{path}: the key {odd[0]!r} is not text; keys are the long flags' names, such as epochs.")
    return dict(loaded)


def dump_mapping(values: dict[str, object]) -> str:
    """Write a mapping of plain values as YAML, in its own order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}. Check the path.") from None
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}.") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES // 1000} kB: that is no configuration file.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}): that is no configuration file.") from None


def _refuse_tricks(text: str, path: Path) -> None:
    """Walk the parser's events, which build nothing and do not recurse, before anything is built."""
    depth = documents = 0
    keys: set[str] = set()
    expects_key = True
    for event in yaml.parse(text, Loader=_Loader):
        where = f"{path}, line {event.start_mark.line + 1}" if event.start_mark else str(path)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise ConfigError(f"{where}: a second document starts here; a configuration is one.")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{where}: anchors and aliases (&, *) are not allowed; write the value out.")
        tag = getattr(event, "tag", None)
        if tag:
            raise ConfigError(f"{where}: the tag {tag!r} is not allowed; write a plain value.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(
                    f"{where}: nested more than {MAX_DEPTH} deep; a configuration is a flat list of 'key: value' lines."
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth == 1 and isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            if expects_key and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    raise ConfigError(f"{where}: the key {event.value!r} is given twice; keep one.")
                keys.add(event.value)
            expects_key = not expects_key


def _syntax_message(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    return f"{where}: not valid YAML: {problem}. Write 'key: value' lines such as 'epochs: 30'."
