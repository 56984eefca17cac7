"""What a constraint on counts keeps of the scores, beside coupling the channels at equal offsets of the pieces.

Where a network cuts a width by position, equally many channels must stay in every piece. Prunus keeps the best of each;
tools that couple what lies at equal offsets keep the offsets whose channels are best together. Both keep equal counts
here: half of every width, or more where its counts ask for it, by the criterion fused_conv_bn, with random weights.

    python benchmarks/balance.py       writes docs/results/benchmarks/balance.json; scripts/benchmark_table its table
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from networks import build  # noqa: E402

import prunus  # noqa: E402
from prunus.files import atomic_write_json  # noqa: E402
from prunus.graph.channels import ChannelGroup  # noqa: E402

NETWORKS = ("shufflenetv2", "timm:resnext50_32x4d", "timm:cspdarknet53")
Floats = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all networks and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "benchmarks" / "balance.json")
    arguments = parser.parse_args(argv)
    rows = []
    for name in arguments.networks:
        model, inputs = build(name)
        rows.append({"network": name} | measure(model, inputs))
        print(rows[-1], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, {"pruning_ratio": 0.5, "criterion": "fused_conv_bn", "networks": rows})
    return 0


def measure(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Return the total of the scores that the widths in pieces keep, both ways."""
    shake(model)
    graph = prunus.trace(model, inputs)
    scores = prunus.score(model, graph, "fused_conv_bn")
    plan = prunus.allocate(graph, scores, prunus.Budget(pruning_ratio=0.5), scope="local", min_channels=1)
    keep = plan.keep_array(graph)
    groups = [group for group in graph.groups if group.levels is not None]
    balanced = coupled = 0.0
    for group in groups:
        values, kept = scores[group.name].numpy(), keep[group.channels]
        counts = np.bincount(group.piece_of[kept], minlength=group.counts.shape[1])
        balanced += float(values[kept].sum())
        coupled += float(values[at_equal_offsets(group, values, counts)].sum())
    channels = sum(group.size for group in groups)
    kept_channels = sum(int(keep[group.channels].sum()) for group in groups)
    found = {"groups": len(groups), "channels": channels, "kept": kept_channels}
    return found | {"balanced": round(balanced, 3), "coupled": round(coupled, 3)}


def at_equal_offsets(group: ChannelGroup, scores: Floats, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Choose so many channels of each piece, the same offsets in all, those of the highest mean score; flags (size,).

    In pieces of different sizes, offsets correspond by their share of the piece, as fine as the smallest piece tells
    them apart; among channels at one offset the best stay, which is more than coupling could choose.
    """
    sizes = np.bincount(group.piece_of)
    offset = np.zeros(group.size, np.int64)
    for piece, size in enumerate(sizes):
        offset[group.piece_of == piece] = np.arange(size) * sizes.min() // size
    means = np.bincount(offset, scores) / np.bincount(offset)
    chosen = np.zeros(group.size, np.bool_)
    ranking = np.lexsort((-scores, offset, -means[offset]))
    for piece, count in enumerate(counts):
        chosen[ranking[group.piece_of[ranking] == piece][:count]] = True
    return chosen


def shake(model: nn.Module) -> None:
    """Give what BatchNorms hold values between a half and one and a half, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


if __name__ == "__main__":
    sys.exit(main())
