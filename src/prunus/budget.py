"""Budgets: limits on what the pruned network may cost, as people type them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from prunus.cost import Cost
from prunus.errors import ConfigError

Amount = int | float | str

_NUMBER = re.compile(r"\s*([0-9]+\.?[0-9]*(?:e[+-]?[0-9]{1,3})?|\.[0-9]+)\s*([a-zµ%]*)\s*", re.IGNORECASE)
_COUNT_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9}
_BYTE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_TIME_UNITS = {"ns": 10**3, "us": 10**6, "µs": 10**6, "ms": 10**9, "s": 10**12}
_COSTS = ("params", "macs", "size_bytes", "latency_ps")
_NUMBERS = '0.5, "40%", 20000000 or "20M"'
_TIMES = '0.5, "40%" or "2ms"'
_LARGEST = 10**18  # of any count; more is a slip of the hand, and would not fit the 64-bit arithmetic of costs

ROUNDING = Decimal("1e-6")
"""How far a fraction of a count may miss a whole number: 4 / 11 of 11 channels are 4, though the float is a bit off."""


@dataclass(frozen=True, init=False)
class Budget:
    """Limits on the pruned network; all that are given must hold.

    A cost limit is a fraction of the dense cost in (0, 1] (a float, or text such as ``"0.5"`` and ``"40%"``) or an
    absolute number (an int, or text such as ``"20M"`` for 20,000,000 MACs or parameters, ``"0.64MB"`` for 640,000
    bytes, ``"1MiB"`` for 1,048,576). `latency` is a fraction, or a time with its unit (``"2ms"``, ``"350us"``); it
    needs a graph with times (`prunus.measure_times`). `pruning_ratio` is the fraction of channels that go, in [0, 1).
    After construction each field is None, an int (absolute) or a float (a fraction).

    >>> Budget(macs="50%", size="0.64MB")
    Budget(pruning_ratio=None, params=None, macs=0.5, size_bytes=640000, latency_ps=None)
    """

    pruning_ratio: float | None
    params: int | float | None
    macs: int | float | None
    size_bytes: int | float | None
    latency_ps: int | float | None

    def __init__(
        self,
        *,
        pruning_ratio: Amount | None = None,
        params: Amount | None = None,
        macs: Amount | None = None,
        size_bytes: Amount | None = None,
        size: Amount | None = None,
        latency: Amount | None = None,
        latency_ps: Amount | None = None,
    ) -> None:
        """Read the limits; `size` is another name for `size_bytes`, and `latency_ps` an absolute `latency`.

        Raises:
            ConfigError: no limit is given, or one is no amount; the message says what one looks like.
        """
        if size is not None and size_bytes is not None:
            raise ConfigError(f"the budget gives size={size!r} and size_bytes={size_bytes!r}; give one.")
        amounts = {"params": params, "macs": macs, "size_bytes": size if size is not None else size_bytes}
        if latency is not None and latency_ps is not None:
            raise ConfigError(f"the budget gives latency={latency!r} and latency_ps={latency_ps!r}; give one.")
        amounts["latency_ps"] = _with_a_unit(latency) if latency is not None else latency_ps
        for name, amount in amounts.items():
            object.__setattr__(self, name, None if amount is None else _limit(amount, name))
        object.__setattr__(self, "pruning_ratio", None if pruning_ratio is None else _ratio(pruning_ratio))
        if not self.to_dict():
            raise ConfigError("the budget is empty; give a limit, e.g. Budget(macs=0.5) or Budget(size='0.64MB').")

    def to_dict(self) -> dict[str, int | float]:
        """Return the limits that were given, by name, as plain numbers."""
        return {name: value for name in ("pruning_ratio", *_COSTS) if (value := getattr(self, name)) is not None}

    def limits(self, dense: Cost) -> dict[str, int]:
        """Return the largest cost of every kind that is within the budget, for those that it limits."""
        return {
            name: int(Decimal(repr(value)) * getattr(dense, name) + ROUNDING) if isinstance(value, float) else value
            for name, value in self.to_dict().items()
            if name != "pruning_ratio"
        }

    def partway(self, dense: Cost, progress: float) -> Budget:
        """Return the budget on the way from the dense network (progress 0) to this one (progress 1).

        Costs go down linearly with progress; a limit beyond the dense cost stays as it is.
        """
        if not 0 <= progress <= 1:
            raise ConfigError(f"progress is {progress}; it runs from 0 (dense) to 1 (the whole budget).")
        limits = {
            name: limit if limit >= (whole := getattr(dense, name)) else whole - int(progress * (whole - limit))
            for name, limit in self.limits(dense).items()
        }
        ratio = None if self.pruning_ratio is None else self.pruning_ratio * progress
        return Budget(pruning_ratio=ratio, **limits)


def _limit(amount: Amount, name: str) -> int | float:
    """Read one cost limit: an int is absolute, a float a fraction of the dense cost."""
    example = {"size_bytes": '0.5, "40%", 640000 or "0.64MB"', "latency_ps": _TIMES}.get(name, _NUMBERS)
    name = name.removesuffix("_ps")
    value, is_fraction = _read(amount, name, example)
    if is_fraction and value <= 1:
        if value <= 0:
            raise ConfigError(f"{name} is {_shown(amount)}; a budget must be more than nothing. Type e.g. {example}.")
        return float(value)
    if value < 1 or value > _LARGEST:
        raise ConfigError(f"{name} is {_shown(amount)}; a budget is from 1 to 10^18. Type e.g. {example}.")
    if is_fraction and value != int(value):
        raise ConfigError(
            f"{name} is {_shown(amount)}: more than 1, so no fraction of the dense cost, and no whole number either. "
            f"Type e.g. {example}."
        )
    return int(value)


def _with_a_unit(latency: Amount) -> Amount:
    """Refuse a whole number without a unit, which could be any."""
    bare = latency.strip().isdecimal() if isinstance(latency, str) else isinstance(latency, int)
    if bare and not isinstance(latency, bool):
        raise ConfigError(f"latency is {_shown(latency)}, without a unit; type e.g. {_TIMES}.")
    return latency


def _ratio(amount: Amount) -> float:
    example = '0.4 or "40%"'
    value, _ = _read(amount, "pruning_ratio", example)
    if not 0 <= value < 1:
        raise ConfigError(
            f"pruning_ratio is {_shown(amount)}; it is the fraction of channels to remove, at least 0 and below 1. "
            f"Type e.g. {example}."
        )
    return float(value)


def _read(amount: Amount, name: str, example: str) -> tuple[Decimal, bool]:
    """Return the number, and whether up to 1 it would be a fraction: it was typed with a point, or as a percentage."""
    if isinstance(amount, bool) or not isinstance(amount, int | float | str):
        raise ConfigError(f"{name} is {_shown(amount)}; type e.g. {example}.")
    if isinstance(amount, int):
        return Decimal(amount), False
    if isinstance(amount, float):
        if amount != amount or abs(amount) == float("inf"):
            raise ConfigError(f"{name} is {amount}; type e.g. {example}.")
        return Decimal(repr(amount)), True
    match = _NUMBER.fullmatch(amount) if len(amount) <= 100 else None
    if match is None:
        hint = " Write the decimal point as a point." if "," in amount else ""
        raise ConfigError(f"{name} is {_shown(amount)}, which is no amount; type e.g. {example}.{hint}")
    number, unit = Decimal(match[1]), match[2].lower()
    if unit == "%":
        if number > 100:
            raise ConfigError(f"{name} is {_shown(amount)}, more than all; type e.g. {example}.")
        return number / 100, True
    if not unit:
        return number, not match[1].isdecimal()
    return number * _unit(unit, amount, name, example), False


def _unit(unit: str, amount: str, name: str, example: str) -> int:
    """Return how many a unit stands for; an error tells apart what was meant."""
    units = {"size_bytes": _BYTE_UNITS, "latency": _TIME_UNITS, "pruning_ratio": {}}.get(name, _COUNT_UNITS)
    if unit in units:
        return units[unit]
    of_bytes = "B, kB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024)"
    known = {"size_bytes": of_bytes, "latency": "ns, us, ms, s"}.get(name, "k, M, G")
    choices = f"the units of {name} are {known}" if units else "it has no unit but %"
    raise ConfigError(f"{name} is {_shown(amount)}, with the unknown unit {unit!r}: {choices}. Type e.g. {example}.")


def _shown(amount: object) -> str:
    text = repr(amount)
    return text if len(text) <= 60 else f"{text[:57]}..."
