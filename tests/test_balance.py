"""A constraint on counts keeps more of the scores than coupling the channels at equal offsets of the pieces."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from prunus.graph.channels import ChannelGroup
from prunus.models import build_model
from tests import blocks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def balance() -> ModuleType:
    spec = importlib.util.spec_from_file_location("balance", ROOT / "benchmarks" / "balance.py")
    assert spec and spec.loader
    module, path = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_equal_offsets_by_hand(balance: ModuleType) -> None:
    """Offsets 0, 1, 2 of two pieces have the means 2.5, 3 and 4.5; of each piece's own, 5 and 4, 6 and 3 are best."""
    group = ChannelGroup("a", np.arange(6), (), np.array([0, 0, 0, 1, 1, 1]), np.arange(1, 4)[:, None] * [1, 1])
    scores = np.array([5.0, 0, 4, 0, 6, 5])
    assert np.flatnonzero(balance.at_equal_offsets(group, scores, np.array([1, 1]))).tolist() == [2, 5]
    assert np.flatnonzero(balance.at_equal_offsets(group, scores, np.array([2, 2]))).tolist() == [1, 2, 4, 5]


def test_pieces_of_different_sizes_correspond_by_share(balance: ModuleType) -> None:
    """The second piece has two channels at each offset of the first."""
    group = ChannelGroup("a", np.arange(6), (), np.array([0, 0, 1, 1, 1, 1]), np.arange(1, 3)[:, None] * [1, 2])
    scores = np.array([1.0, 5, 4, 4, 1, 0])
    assert np.flatnonzero(balance.at_equal_offsets(group, scores, np.array([1, 2]))).tolist() == [0, 2, 3]


def more(found: dict[str, float]) -> float:
    assert found["groups"] > 0 and 0 < found["kept"] < found["channels"]
    return found["balanced"] / found["coupled"]


def test_shufflenet(balance: ModuleType) -> None:
    torch.manual_seed(0)
    assert more(balance.measure(build_model("shufflenetv2"), torch.zeros(1, 3, 32, 32))) > 1.05


@pytest.mark.parametrize("block", ["c2f", "shuffle_unit"])
def test_blocks(balance: ModuleType, block: str) -> None:
    torch.manual_seed(0)
    model, inputs = getattr(blocks, block)()
    assert more(balance.measure(model, inputs)) > 1.02


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("resnext50_32x4d", 1.15), ("cspdarknet53", 1.03)])
def test_networks_of_timm(balance: ModuleType, name: str, least: float) -> None:
    # A torchvision that was built for another torch raises a RuntimeError.
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    assert more(balance.measure(timm.create_model(name), torch.zeros(1, 3, 64, 64))) > least


def test_the_page_has_all_three_networks() -> None:
    written = json.loads((ROOT / "docs" / "results" / "benchmarks" / "balance.json").read_text())["networks"]
    assert [row["network"].rpartition(":")[2] for row in written] == ["shufflenetv2", "resnext50_32x4d", "cspdarknet53"]
    assert all(more(row) > 1 for row in written)
