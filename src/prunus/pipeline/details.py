"""What a page shows beside the summary: the network, every channel's score, and what changed on the test images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from prunus.files import atomic_write_json, read_json
from prunus.graph.channels import ChannelGraph, Keep
from prunus.graph.flow import FlowNode, flow_of
from prunus.graph.trace import trace
from prunus.inspecting import inspection_of
from prunus.inspection import GroupRow
from prunus.pipeline.run import Run
from prunus.plan import PruningPlan
from prunus.training.evaluate import Predicted

CLASSES = 100  # with more, a matrix of what was taken for what is neither small nor readable
_SHOWN = {"lost": 10, "gained": 6, "otherwise wrong": 2}  # images of each kind at most
_SIDE = 96  # pixels of an image that is shown, at most


def write_scores(run: Run, scores: Mapping[str, Tensor]) -> None:
    """Write scores.json: the score of every channel, higher = keep, when channels were chosen for the last time."""
    groups = {name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in scores.items()}
    atomic_write_json(run.folder.scores, {"criterion": run.config.criterion_name, "groups": groups})


def write_details(run: Run, dense: nn.Module, plan: PruningPlan, found: Mapping[str, Predicted]) -> None:
    """Write details.json, from what the networks, "dense" and "pruned" or only the latter, made of the test images."""
    graph = trace(dense, run.proof_inputs())
    content = {
        "format_version": 1,
        **_network(graph, flow_of(dense, graph), plan, _scores(run)),
        "test": _test(run, found),
    }
    atomic_write_json(run.folder.details, content)


def _scores(run: Run) -> Mapping[str, Any]:
    """Return the scores by group; empty where the search was that of an earlier Prunus."""
    if not run.folder.scores.exists():
        return {}
    found = read_json(run.folder.scores, "scores")
    groups = found.get("groups") if isinstance(found, dict) else None
    return groups if isinstance(groups, dict) else {}


def _network(
    graph: ChannelGraph, flow: tuple[FlowNode, ...], plan: PruningPlan, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the data flow with the widths before and after, its groups, and what stays whole."""
    keep = plan.keep_array(graph)
    inspected = inspection_of(graph, flow)
    nodes = [
        row.model_dump(exclude={"kept"}) | {"after": row.width - _removed(node, keep)}
        for row, node in zip(inspected.nodes, flow, strict=True)
    ]
    kept = {group.name: list(group.keep) for group in plan.groups}
    return {
        "nodes": nodes,
        "groups": [_group(row, kept.get(row.name), scores.get(row.name)) for row in inspected.groups],
        "frozen": [row.model_dump() for row in inspected.frozen],
    }


def _removed(node: FlowNode, keep: Keep) -> int:
    return int((~keep[node.channels]).sum())


def _group(row: GroupRow, kept: list[int] | None, scores: Any) -> dict[str, Any]:
    taken = {"name", "channels", "constraint", "producers", "consumers", "passes", "couplings", "params_share"}
    return {
        **row.model_dump(include=taken | {"macs_share"}),
        "keep": list(range(row.channels)) if kept is None else kept,
        "scores": scores,
    }


def _test(run: Run, found: Mapping[str, Predicted]) -> dict[str, Any]:
    """Describe what the networks made of the test images."""
    labels = run.data.test_labels
    classes = len(run.data.classes)
    counts = {
        name: torch.bincount(labels * classes + predicted.classes, minlength=classes**2).view(classes, classes).tolist()
        for name, predicted in found.items()
        if classes <= CLASSES
    }
    right = {
        name: torch.bincount(labels[predicted.classes == labels], minlength=classes).tolist()
        for name, predicted in found.items()
    }
    return {
        "classes": list(run.data.classes),
        "images": torch.bincount(labels, minlength=classes).tolist(),
        "right": right,
        "confusion": counts,
        **(_changed(run, found["dense"], found["pruned"]) if "dense" in found else {}),
    }


def _changed(run: Run, dense: Predicted, pruned: Predicted) -> dict[str, Any]:
    """Count the images that the pruned network takes for something else, and show some: the surest ones first."""
    labels = run.data.test_labels
    differ = dense.classes != pruned.classes
    kinds = {
        "lost": differ & (dense.classes == labels),
        "gained": differ & (pruned.classes == labels),
        "otherwise wrong": differ & (dense.classes != labels) & (pruned.classes != labels),
    }
    shown = []
    for kind, which in kinds.items():
        numbers = which.nonzero().flatten()
        surest = pruned.confidence[numbers].argsort(descending=True, stable=True)
        for number in numbers[surest][: _SHOWN[kind]].tolist():
            shown.append(
                {
                    "kind": kind,
                    "number": number,
                    "label": int(labels[number]),
                    "dense": int(dense.classes[number]),
                    "pruned": int(pruned.classes[number]),
                    "dense_confidence": round(float(dense.confidence[number]), 4),
                    "pruned_confidence": round(float(pruned.confidence[number]), 4),
                    "png": _png(run.data.test_images[number]),
                }
            )
    return {"changed": {kind: int(which.sum()) for kind, which in kinds.items()}, "shown": shown}


def _png(image: Tensor) -> str:
    """Encode an image, uint8 (C, H, W) with one or three channels, as a PNG in base64; a large one is made smaller."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
