"""Figures as people read them: MB is 10^6 bytes, k and M are thousands and millions, accuracies are in %."""

from __future__ import annotations

MINUS = "−"


def percent(fraction: float | None) -> str:
    """Write a fraction as a percentage: 0.8612 → "86.12 %"; a dash where it was not measured."""
    return "–" if fraction is None else f"{100 * fraction:.2f} %"


def points(difference: float) -> str:
    """Write a difference of two fractions in percentage points, with its sign: -0.004 → "−0.40"."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if text in {"+0.00", "-0.00"} else text.replace("-", MINUS)


def count(number: int) -> str:
    """Write a count: 269722 → "269.7 k", 40813184 → "40.8 M"."""
    return _scaled(number, (("G", 1e9), ("M", 1e6), ("k", 1e3))) or str(number)


def size(number: int) -> str:
    """Write a number of bytes: 638000 → "638.0 kB", 1094321 → "1.09 MB"."""
    if number >= 999_950:
        return f"{number / 1e6:.2f} MB"
    return f"{number / 1e3:.1f} kB" if number >= 1000 else f"{number} B"


def milliseconds(number: float | None) -> str:
    """Write a time in ms with three significant digits, or a dash where it was not measured: 0.21 → "0.210 ms"."""
    return "–" if number is None else f"{three_digits(number)} ms"


def three_digits(number: float) -> str:
    """Write a number with three significant digits, zeros at the end too, so that those of a column are alike."""
    return f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}"


def times(before: float | None, after: float | None) -> str:
    """Write how many times smaller or faster: 2.13 → "2.13×"; a dash where there is nothing to compare."""
    return f"{before / after:.2f}×" if before and after else "–"


def duration(seconds: float) -> str:
    """Write a time span: 75 → "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else f"{seconds:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def _scaled(number: float, units: tuple[tuple[str, float], ...]) -> str:
    for unit, scale in units:
        if number >= 0.99995 * scale:
            return f"{number / scale:.1f} {unit}"
    return ""
