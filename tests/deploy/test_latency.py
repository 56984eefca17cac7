"""Latency: what is timed, in which mode, and that nothing stays changed."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from torch import Tensor, nn

from prunus.deploy import measure_latency, processor_name


class Slow(nn.Module):
    """Takes a known time, and notes how it was called."""

    def __init__(self, seconds: float, calls: list[tuple[float, bool, bool, int]]) -> None:
        super().__init__()
        self.seconds, self.calls = seconds, calls

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        self.calls.append((self.seconds, self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return x


def test_models_take_turns_in_eval_and_inference_mode_on_one_thread() -> None:
    calls: list[tuple[float, bool, bool, int]] = []
    slow, fast = Slow(0.02, calls), Slow(0.002, calls)
    found = measure_latency({"slow": slow, "fast": fast}, torch.zeros(1, 2), runs=5, warmup=2)
    assert [seconds for seconds, *_ in calls] == [0.02, 0.002] * 7
    assert {tuple(how) for _, *how in calls} == {(False, True, 1)}
    assert slow.training
    assert fast.training
    assert 20 <= found["slow"].p10_ms <= found["slow"].median_ms <= found["slow"].p90_ms
    assert 2 <= found["fast"].median_ms < 20
    assert (found["fast"].runs, found["fast"].threads, found["fast"].batch) == (5, 1, 1)
    assert found["fast"].runtime == f"PyTorch {torch.__version__}"
    assert found["fast"].processor == processor_name()
    assert dataclasses.asdict(found["fast"])["median_ms"] == found["fast"].median_ms


def test_modes_and_threads_are_put_back_even_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("broken")

    model = nn.Sequential(nn.BatchNorm1d(2).eval(), Broken())
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="broken"):
            measure_latency({"m": model}, torch.zeros(1, 2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [module.training for module in model.modules()] == [True, False, True]


def test_the_processor_has_a_name() -> None:
    assert processor_name().strip()
