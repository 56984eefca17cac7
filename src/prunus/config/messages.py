"""Configuration errors in words: what, where, why, and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

BUDGET_ERROR = "budget"
"""The kind of an error whose message the budget wrote itself, with its own examples."""


def explain(detail: ErrorDetails, fields: Mapping[str, FieldInfo], origins: Mapping[str, str]) -> list[str]:
    """Turn one error of pydantic into lines for people; `origins` names the file a key came from, "" for a flag."""
    if not detail["loc"]:  # the options disagree with each other
        return detail["msg"].removeprefix("Value error, ").split("\n")
    key = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return [f"{key}{_origin(key, origins)} is no option{_near(key, fields)}"]
    field = fields[key]
    example = (field.examples or [""])[0]
    if detail["type"] == "missing":
        return [f"{key} is missing: type {flag_name(key)} {example}"]
    name = f"{key}{_origin(key, origins)}" if origins.get(key) else flag_name(key)
    if detail["type"] == BUDGET_ERROR:
        said = detail["msg"].partition(" is ")[2] or detail["msg"]  # without the budget's own name for itself
        return [f"{name}: {said.removesuffix('.')}"]
    value = _short(detail["input"])
    advice = f"{key}: {example}" if origins.get(key) else f"{flag_name(key)} {example}"
    return [f"{name}: {_what_is_wrong(detail, value)}; type e.g. {advice}"]


def _what_is_wrong(detail: ErrorDetails, value: str) -> str:
    kind = detail["type"]
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"{value} is none of {', '.join(choices)}{_near(value.strip(chr(39)), choices)}"
    if kind.startswith("int_"):
        return f"{value} is not a whole number"
    if kind.startswith("float_"):
        return f"{value} is not a number"
    if kind.startswith("bool_"):
        return f"{value} is neither true nor false"
    if kind == "string_pattern_mismatch":
        return f"{value} is none of the names it may have"
    if kind in {"string_type", "path_type"}:
        return f"{value} is not text"
    return f"{value} {detail['msg'].removeprefix('Value error, ').removeprefix('Input ')}"


def _origin(key: str, origins: Mapping[str, str]) -> str:
    return f" (in {origins[key]})" if origins.get(key) else ""


def flag_name(key: str) -> str:
    """Turn a key into the flag that sets it: round_to → --round-to."""
    return "--" + key.replace("_", "-")


def _near(name: str, names: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(
        name.replace("-", "_") if isinstance(names, Mapping) else name, list(names), n=1, cutoff=0.5
    )
    return f"; did you mean {close[0]}?" if close else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def as_list(problems: list[str]) -> str:
    """Join the problems to one message."""
    if len(problems) == 1:
        return f"The configuration cannot be used: {problems[0]}."
    return "\n".join([f"The configuration has {len(problems)} errors:", *(f"  - {problem}" for problem in problems)])
