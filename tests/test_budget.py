"""Budgets as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.budget import Amount, Budget
from prunus.cost import Cost
from prunus.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("0.64MB", 640_000),
        ("640kB", 640_000),
        ("0.64 mb", 640_000),
        ("1MiB", 1_048_576),
        ("1.5KiB", 1536),
        ("2GB", 2 * 10**9),
        ("640000B", 640_000),
        ("640000", 640_000),
        (" 640000 ", 640_000),
        ("40%", 0.4),
        ("100%", 1.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.0", 1.0),
        ("1", 1),
        ("1e6", 10**6),
        (0.5, 0.5),
        (640_000, 640_000),
        (2e7, 20_000_000),
    ],
)
def test_sizes(typed: Amount, meant: float) -> None:
    budget = Budget(size=typed)
    assert budget.size_bytes == meant
    assert type(budget.size_bytes) is type(meant)
    assert budget == Budget(size_bytes=typed)


@pytest.mark.parametrize(("typed", "meant"), [("20M", 2 * 10**7), ("2.5k", 2500), ("1.5G", 15 * 10**8), ("12%", 0.12)])
def test_counts(typed: str, meant: float) -> None:
    assert Budget(macs=typed).macs == meant
    assert Budget(params=typed).params == meant


@pytest.mark.parametrize(
    ("field", "typed", "message"),
    [
        ("size", 0, "size_bytes is 0; a budget is from 1"),
        ("size", "0", "a budget is from 1"),
        ("size", 0.0, "more than nothing"),
        ("size", "0%", "more than nothing"),
        ("size", -5, "a budget is from 1"),
        ("size", -0.5, "more than nothing"),
        ("size", "-1", "which is no amount"),
        ("size", 1.5, "more than 1, so no fraction of the dense cost, and no whole number"),
        ("size", "101%", "more than all"),
        ("size", "0,64MB", "Write the decimal point as a point"),
        ("size", "20M", "unknown unit 'm': the units of size_bytes are B, kB, MB"),
        ("macs", "20MB", "the units of macs are k, M, G"),
        ("params", "many", "params is 'many', which is no amount; type e.g. 0.5"),
        ("params", "", "which is no amount"),
        ("params", "nan", "which is no amount"),
        ("params", float("nan"), "params is nan"),
        ("params", float("inf"), "params is inf"),
        ("params", True, "params is True"),
        ("params", [], "params is \\[\\]"),
        ("params", 10**30, "from 1 to 10\\^18"),
        ("params", "1e999", "from 1 to 10\\^18"),
        ("params", "1e999999999", "which is no amount"),
        ("params", "9" * 5000, "which is no amount"),
        ("params", "٣", "which is no amount"),
        ("pruning_ratio", 1, "at least 0 and below 1"),
        ("pruning_ratio", "100%", "at least 0 and below 1"),
        ("pruning_ratio", -0.1, "at least 0 and below 1"),
        ("pruning_ratio", "40k", "no unit but %"),
    ],
)
def test_nonsense_is_explained(field: str, typed: Amount, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Budget(**{field: typed})
    assert len(str(caught.value)) < 250


def test_something_must_be_given_once() -> None:
    with pytest.raises(ConfigError, match="the budget is empty"):
        Budget()
    with pytest.raises(ConfigError, match="size=1000 and size_bytes=1000; give one"):
        Budget(size=1000, size_bytes=1000)
    assert Budget(pruning_ratio=0).to_dict() == {"pruning_ratio": 0.0}


@given(st.one_of(st.text(max_size=12), st.floats(), st.integers(), st.binary(), st.none(), st.booleans()))
def test_any_input_is_read_or_refused(typed: Amount) -> None:
    try:
        value = Budget(macs=typed, pruning_ratio=0.1).macs
    except ConfigError:
        return
    assert value is None if typed is None else value is not None and 0 < value <= 10**18


def test_limits_are_what_fractions_say_in_decimal() -> None:
    """0.57 · 100 is 56.99… in binary; a person means 57."""
    dense = Cost(params=100, macs=1001, size_bytes=4000)
    assert Budget(params=0.57, macs="50%", size="1kB").limits(dense) == {"params": 57, "macs": 500, "size_bytes": 1000}
    assert Budget(macs=143 / 1001).limits(dense) == {"macs": 143}
    assert Budget(pruning_ratio=0.5).limits(dense) == {}


def test_partway() -> None:
    dense = Cost(params=1000, macs=1000, size_bytes=1000)
    budget = Budget(params=0.5, macs=200, size_bytes=5000, pruning_ratio=0.4)
    assert budget.partway(dense, 0).to_dict() == {"pruning_ratio": 0, "params": 1000, "macs": 1000, "size_bytes": 5000}
    assert budget.partway(dense, 0.25).to_dict() == {
        "pruning_ratio": 0.1,
        "params": 875,
        "macs": 800,
        "size_bytes": 5000,
    }
    assert budget.partway(dense, 1).limits(dense) == budget.limits(dense)
    with pytest.raises(ConfigError, match="progress is 2"):
        budget.partway(dense, 2)


def test_latency_has_a_unit_or_is_a_fraction() -> None:
    assert Budget(latency="2ms").latency_ps == 2 * 10**9
    assert Budget(latency="350us") == Budget(latency="350 µs") == Budget(latency_ps=350 * 10**6)
    assert Budget(latency=0.5).to_dict() == Budget(latency="50%").to_dict() == {"latency_ps": 0.5}
    dense = Cost(params=1, macs=1, size_bytes=1, latency_ps=3000)
    assert Budget(latency=0.5).limits(dense) == {"latency_ps": 1500}
    for wrong in (2, "2"):
        with pytest.raises(ConfigError, match=r'latency is .*2.*, without a unit; type e\.g\. 0\.5, "40%" or "2ms"'):
            Budget(latency=wrong)
    with pytest.raises(ConfigError, match="unknown unit 'mb': the units of latency are ns, us, ms, s"):
        Budget(latency="2MB")
    with pytest.raises(ConfigError, match="give one"):
        Budget(latency=0.5, latency_ps=3)
