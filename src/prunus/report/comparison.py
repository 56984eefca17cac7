"""Dense beside pruned: the same five lines for the terminal, the page and whoever else shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunus.report import numbers
from prunus.report.folder import Summary


@dataclass(frozen=True)
class Compared:
    """One quantity of both networks in words; `left_ratio` is pruned/dense, None for what is not a cost."""

    quantity: str
    dense: str
    pruned: str
    gain: str
    left_ratio: float | None


def compare(summary: Summary) -> list[Compared]:
    """List accuracy, bytes on disk, parameters, MACs and latency, in this order; latency only where it was measured."""
    dense, pruned = summary.dense, summary.pruned
    rows = [
        Compared(
            "test accuracy",
            numbers.percent(dense.test_accuracy),
            numbers.percent(pruned.test_accuracy),
            "from scratch" if summary.gained is None else f"{numbers.points(summary.gained)} points",
            None,
        ),
        _cost("bytes on disk", dense.size_bytes, pruned.size_bytes, numbers.size, "smaller"),
        _cost("parameters", dense.params, pruned.params, numbers.count, "fewer"),
        _cost("MACs", dense.macs, pruned.macs, numbers.count, "fewer"),
    ]
    if dense.latency_ms and pruned.latency_ms:
        before, after = dense.latency_ms, pruned.latency_ms
        gain = f"{numbers.times(before, after)} as fast"
        left = after / before
        rows.append(Compared("latency", numbers.milliseconds(before), numbers.milliseconds(after), gain, left))
    return rows


def _cost(quantity: str, before: int, after: int, write: Callable[[int], str], better: str) -> Compared:
    return Compared(quantity, write(before), write(after), f"{numbers.times(before, after)} {better}", after / before)


def int8_text(summary: Summary) -> str:
    """Put in words what 8-bit integers cost and save; empty where there is no such file."""
    if summary.int8 is None:
        return ""
    found, seen = summary.int8, summary.int8.val_accuracy
    trained = "" if seen.fine_tuned is None else f", {numbers.percent(seen.fine_tuned)} trained for it"
    which = "trained for it" if found.delivered == "fine_tuned" else "rounded"
    taken = "" if found.latency_ms is None else f", {numbers.milliseconds(found.latency_ms)}"
    return (
        f"8-bit integers, {which}: {numbers.percent(found.test_accuracy)} of the test images, "
        f"{numbers.size(found.size_bytes)}{taken}; of the held-out images {numbers.percent(seen.rounded)} "
        f"rounded{trained}, {numbers.percent(seen.float32)} in float32"
    )
