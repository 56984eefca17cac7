"""The kinds of values that a configuration holds, and how a field describes itself."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.config import JsonDict


def finite_number(value: object) -> object:
    """Let pass what may become a number; a switch is none, although Python counts with it."""
    if isinstance(value, bool):
        raise ValueError("is not a number")
    if isinstance(value, str | float) and str(value).strip().lower().lstrip("+-") in {"nan", "inf", "infinity"}:
        raise ValueError("is not a finite number")
    return value


RECOVERY_STEPS = ("compensate", "reconstruct", "recalibrate")
"""In the order in which they are carried out."""


def as_steps(value: object) -> str:
    """Put the steps of a recovery, "recalibrate,reconstruct", in their order, each once; "none" stands alone."""
    if not isinstance(value, str):
        raise ValueError("is not text")
    asked = {part.strip() for part in value.split(",")}
    if asked == {"none"}:
        return "none"
    for part in sorted(asked - set(RECOVERY_STEPS)):
        if part == "none":
            raise ValueError("is none and something: leave one of the two out")
        near = difflib.get_close_matches(part, RECOVERY_STEPS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"names {part!r}, which is none of {', '.join(RECOVERY_STEPS)}, none{hint}")
    return ",".join(step for step in RECOVERY_STEPS if step in asked)


def as_multiple(value: object) -> object:
    """Read a multiple of channels: "8", 8 or "auto"."""
    text = str(value).strip()
    if text == "auto":
        return text
    if isinstance(value, bool) or not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ValueError("is neither a whole number from 1 to 1024 nor auto")
    return int(text)


def as_number(value: object) -> object:
    """Turn "0.5" into 0.5 and "200000" into 200000, as a YAML file would; leave "0.64MB" to the budget."""
    if isinstance(value, str):
        for number in (int, float):
            try:
                found = number(value)
            except ValueError:
                continue
            return finite_number(found)
        return value.strip()
    return finite_number(value)


Whole = Annotated[int, BeforeValidator(finite_number)]
Real = Annotated[float, BeforeValidator(finite_number), Field(allow_inf_nan=False)]
Limit = Annotated[int | float | str, BeforeValidator(as_number)]
Steps = Annotated[str, BeforeValidator(as_steps)]
Multiple = Annotated[int | Literal["auto"], BeforeValidator(as_multiple)]
Fraction = Annotated[int | float, BeforeValidator(as_number), Field(allow_inf_nan=False)]


def flag(default: Any, panel: str, metavar: str, description: str, example: str, **limits: Any) -> Any:
    """Describe a field once, for the configuration, for the command line and for error messages."""
    extra: JsonDict = {"panel": panel, "metavar": metavar}
    return Field(default, description=description, examples=[example], json_schema_extra=extra, **limits)
