"""BatchNorm folded into the layer before it is the same map, to the last bits of float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.deploy.exported import randomise
from torch import Tensor, nn
from torch.fx import GraphModule

from prunus.deploy.capturing import quietly
from prunus.deploy.folding import count_operations, fold_batchnorm

NORM = "aten.batch_norm.default"


class TwoNorms(nn.Module):
    """One convolution, run twice, with a BatchNorm for each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(x))
        return x


class Seen(nn.Module):
    """What the convolution gives is used beside its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class Standardised(nn.Module):
    """The weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.conv2d(x, self.weight - self.weight.mean()))


def row(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "without a bias": (row(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (3, 6, 6), 0),
    "with a bias": (row(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1)), (3, 6, 6), 0),
    "padding by name": (row(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)), (3, 6, 6), 0),
    "depthwise": (row(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), (4, 6, 6), 0),
    "transposed in groups": (row(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 6, 6), 0),
    "linear": (row(nn.Linear(5, 4), nn.BatchNorm1d(4)), (5,), 0),
    "linear over positions": (row(nn.Linear(5, 4), nn.BatchNorm1d(3)), (3, 5), 1),
    "one axis": (row(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 9), 0),
    "without factors": (row(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (3, 6, 6), 0),
    "of the batch": (row(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), (3, 6, 6), 1),
    "before the convolution": (row(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), (3, 6, 6), 1),
    "one convolution, two norms": (TwoNorms, (3, 6, 6), 0),
    "seen beside": (Seen, (3, 6, 6), 1),
    "computed weight": (Standardised, (3, 6, 6), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_nothing_but_the_operations(name: str) -> None:
    build, shape, left = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    if name != "of the batch":
        model = randomise(model)
    model, x = model.double(), torch.randn(4, *shape, dtype=torch.float64)
    with quietly():
        network = torch.export.export(model, (x,)).module(check_guards=False)
    assert isinstance(network, GraphModule)
    norms = count_operations(network)[NORM]
    assert len(fold_batchnorm(network)) == norms - left
    assert count_operations(network)[NORM] == left
    expected = model(x).detach()
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    used = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    assert used == {name for name, _ in [*network.named_parameters(), *network.named_buffers()]}
