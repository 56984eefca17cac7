"""The data flow of a traced network: layers, joins and cuts, who reads whom, and which channels leave each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import TraceError
from prunus.graph.flow import FlowNode, flow_of


class Everything(nn.Module):
    """A cut, a gate, a sum, a concatenation, a module that runs twice and one that is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.left = nn.Conv2d(4, 4, 1)
        self.gate = nn.Linear(4, 4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        a = self.left(a)
        a = a * self.gate(a.mean((2, 3))).sigmoid()[:, :, None, None]
        b = b + self.twice(self.twice(b))
        x = torch.cat([a, b], 1)
        return self.head(torch.nn.functional.gelu(x).mean((2, 3)))


def seen(nodes: tuple[FlowNode, ...]) -> list[tuple[str, str, str, tuple[int, ...], int]]:
    return [(node.kind, node.name, node.op, node.inputs, node.width) for node in nodes]


def test_layers_joins_and_cuts_in_their_order() -> None:
    model, x = Everything(), torch.ones(1, 3, 4, 4)
    nodes = flow_of(model, prunus.trace(model, x))
    assert seen(nodes) == [
        ("input", "input", "", (), 3),
        ("layer", "stem.0", "convolution", (0,), 8),
        ("cut", "", "cut", (1,), 8),
        ("layer", "left", "convolution", (2,), 4),
        ("layer", "gate", "addmm", (3,), 4),
        ("join", "", "product", (3, 4), 4),
        ("layer", "twice", "convolution", (2,), 4),
        ("layer", "twice", "convolution", (6,), 4),
        ("join", "", "sum", (2, 7), 4),
        ("join", "", "concatenation", (5, 8), 8),
        ("layer", "head", "addmm", (9,), 5),
    ]
    assert nodes[1].through == ("BatchNorm", "ReLU")
    assert nodes[9].through == ("GELU", "mean") and nodes[4].through == ("sigmoid",)


@pytest.mark.parametrize("name", ["resnet20", "densenet40", "mobilenetv2", "googlenet"])
def test_its_macs_are_those_of_the_network_and_its_channels_those_of_the_graph(name: str) -> None:
    name = next(known for known in prunus.MODELS if known.startswith(name[:9]))
    model, x = prunus.build_model(name), torch.ones(1, 3, 32, 32)
    graph = prunus.trace(model, x)
    nodes = flow_of(model, graph)
    assert sum(node.macs for node in nodes) == prunus.predict_cost(graph, graph.keep_all()).macs
    layers = {layer.weight: layer for layer in graph.layers}
    assert {node.weight for node in nodes if node.kind == "layer"} == set(layers)
    for node in nodes:
        if node.kind == "layer":
            np.testing.assert_array_equal(node.channels, layers[node.weight].channels)
        elif node.kind == "join":
            carried = {int(c) for source in node.inputs for c in nodes[source].channels}
            assert set(node.channels.tolist()) <= carried
            assert len(node.inputs) > 1


def test_the_model_is_left_as_it_was() -> None:
    model, x = Everything(), torch.ones(2, 3, 4, 4)
    graph = prunus.trace(model, x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flow_of(model, graph)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_graph_without_a_trace_is_refused() -> None:
    model = Everything()
    graph = dataclasses.replace(prunus.trace(model, torch.ones(1, 3, 4, 4)), runner=None)
    with pytest.raises(TraceError, match=r"get one by prunus\.trace\(model, x\)"):
        flow_of(model, graph)
