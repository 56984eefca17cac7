"""Measure channels on real images: how often each is zero, the rank of its maps, and what its consumers see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunus.errors import TraceError
from prunus.graph.channels import Activation, ChannelGraph, Ids, Site
from prunus.graph.findings import name_of
from prunus.graph.gradients import first_order, sensitivity
from prunus.graph.members import Members, real_copies
from prunus.graph.rules import NONLINEARITIES
from prunus.graph.running import DispatchMode, run

Floats = npt.NDArray[np.float64]

Covariance = tuple[Ids, Tensor, Tensor]

_CHANNEL_AXES = {"aten.convolution": 1, "aten.mm": 1, "aten.addmm": 1, "aten.bmm": 2, "aten.baddbmm": 2}
_OPERANDS = {"aten.addmm": 1, "aten.baddbmm": 1}


@dataclass(frozen=True)
class Measured:
    """What was measured; None for what was not asked for.

    `zero_fraction` and `feature_rank` are (channel_count,), NaN for a channel that was met nowhere. `variances` holds,
    for each of the graph's contractions, the variance of every channel of its input, (C_in,), or None where it was not
    met. `first_order` is, by the name of a layer's weight, (batches, C_out). `covariances` holds, for each contraction,
    the ids of the channels that its input has, (ids,), and how they vary together, (ids, ids): their means over an
    image's positions, and what is left at each position; or None where its channels do not lie alike. `sensitivity` is,
    by the name of a layer's weight, (2, C_out), a mean over the images.
    """

    zero_fraction: Floats | None = None
    feature_rank: Floats | None = None
    variances: tuple[Floats | None, ...] | None = None
    first_order: dict[str, Tensor] | None = None
    covariances: tuple[Covariance | None, ...] | None = None
    sensitivity: dict[str, Tensor] | None = None


def measure(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[tuple[Tensor, Tensor | None]], needs: Collection[str]
) -> Measured:
    """Run a network over calibration batches once, and measure what is needed of its channels.

    The k-th operation of a kind in a real forward pass is the k-th of the trace, which knows its channels. The network
    runs in evaluation mode and is left as it was: modes, gradients, buffers and the random state.

    Args:
        model: the network that `graph` was traced from.
        graph: its channel graph.
        batches: inputs as the model takes them, (N, C, H, W), on its device, each with its labels or None.
        needs: fields of Measured by name; ``"variance"`` for `variances`, ``"refit_error"`` for `covariances` and
            `sensitivity`.

    Raises:
        TraceError: there is no batch.
        ConfigError: first_order is needed, and the loss of a batch cannot be computed; or refit_error is, and the
            network does not return one tensor.
    """
    watch = _Watch(graph, needs)
    members = Members(model)
    rows: dict[str, list[Tensor]] = {}
    moves: dict[str, Tensor] = {}
    noise = torch.Generator().manual_seed(0)
    count = seen = 0
    for images, labels in batches:
        count += 1
        if watch.is_needed:
            watch.start()
            run(model, real_copies(members), (images,), (watch,), [], training=False, members=members)
        if "first_order" in needs and labels is not None:
            for name, sums in first_order(model, graph, members, images, labels).items():
                rows.setdefault(name, []).append(sums)
        if "refit_error" in needs:
            seen += len(images)
            for name, sums in sensitivity(model, graph, members, images, noise).items():
                moves[name] = moves.get(name, 0) + sums
    if not count:
        raise TraceError(
            "measuring activations needs at least one batch; pass calibration=images, an (N, C, H, W) tensor."
        )
    return Measured(
        zero_fraction=watch.zeros.result() if "zero_fraction" in needs else None,
        feature_rank=watch.ranks.result() if "feature_rank" in needs else None,
        variances=tuple(spread.variance() for spread in watch.spreads) if "variance" in needs else None,
        first_order={name: torch.stack(sums) for name, sums in rows.items()} if "first_order" in needs else None,
        covariances=tuple(joint.covariance() for joint in watch.joints) if "refit_error" in needs else None,
        sensitivity={name: sums / seen for name, sums in moves.items()} if "refit_error" in needs else None,
    )


class _Watch(DispatchMode):
    """Looks at the results of non-linearities and at what layers consume, as the trace numbered them."""

    def __init__(self, graph: ChannelGraph, needs: Collection[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.needs = frozenset(needs) & {"zero_fraction", "feature_rank", "variance", "refit_error"}
        self.activations: dict[int, Activation] = {activation.index: activation for activation in graph.activations}
        contractions = [site for site in graph.sites if site.weight]  # in the order of `graph.contractions`
        self.sites: dict[tuple[str, int], tuple[int, Site]] = {
            (site.op, site.index): (number, site) for number, site in enumerate(contractions)
        }
        self.zeros, self.ranks = _Means(graph.channel_count), _Means(graph.channel_count)
        self.spreads = [_Spread() for _ in graph.contractions]
        self.joints = [_Joint() for _ in graph.contractions]
        self.linear = np.ones(graph.channel_count, np.bool_)  # channels that meet no non-linearity
        for activation in graph.activations:
            self.linear[activation.channels[activation.channels >= 0]] = False
        self.calls = 0
        self.counts: Counter[str] = Counter()

    @property
    def is_needed(self) -> bool:
        """Whether anything is to be looked at."""
        return bool(self.needs)

    def start(self) -> None:
        """Begin a forward pass."""
        self.calls = 0
        self.counts.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = name_of(func)
        if name in _CHANNEL_AXES:
            number, site = self.sites.get((name, self.counts[name]), (0, None))
            self.counts[name] += 1
            if site is not None:
                self._consumed(args[_OPERANDS.get(name, 0)], number, site)
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in NONLINEARITIES:
            activation = self.activations.get(self.calls)
            self.calls += 1
            if activation is not None:
                self._activated(out, activation.channels)
        return out

    def _activated(self, out: Tensor, channels: Ids) -> None:
        if "zero_fraction" in self.needs:
            others = [axis for axis in range(out.dim()) if axis != 1]
            self.zeros.add(channels, (out == 0).double().mean(others), len(out))
        if "feature_rank" in self.needs:
            self.ranks.add(channels, _ranks(out), len(out))

    def _consumed(self, x: Tensor, number: int, site: Site) -> None:
        axis = _CHANNEL_AXES[site.op]
        if "variance" in self.needs:
            self.spreads[number].add(x.movedim(axis, 0).flatten(1))
        if "refit_error" in self.needs:
            for field in site.operands[0]:
                if field.size == field.shape[axis] == x.shape[axis]:
                    rows = x.movedim(axis, 0)  # of a convolution (N, C, …), of products (rows, C)
                    self.joints[number].add(field.reshape(-1), rows.reshape(*rows.shape[:2], -1))
                    break
        if "feature_rank" in self.needs and site.op == "aten.convolution":
            for field in site.operands[0]:
                if field.size == field.shape[1] == x.shape[1]:
                    ids = field.reshape(-1)
                    ids = np.where(self.linear[ids] & (ids >= 0), ids, -1)
                    if (ids >= 0).any():
                        self.ranks.add(ids, _ranks(x), len(x))


def _ranks(x: Tensor) -> Tensor:
    """Return the mean rank of each channel's maps, (N, C, H, W) → (C,); those of 3-d inputs are stacked along depth."""
    maps = x.reshape(*x.shape[:2], -1, x.shape[-1] if x.dim() > 2 else 1)
    exact = maps if maps.dtype == torch.float64 else maps.float()
    ranks: Tensor = torch.linalg.matrix_rank(exact)
    return ranks.double().mean(0)


class _Means:
    """The mean of something by coupled channel, over the images and places where it is met."""

    def __init__(self, channel_count: int) -> None:
        self.total = np.zeros(channel_count)
        self.seen = np.zeros(channel_count)

    def add(self, channels: Ids, values: Tensor, images: int) -> None:
        alive = channels >= 0
        np.add.at(self.total, channels[alive], values.cpu().numpy()[alive] * images)
        np.add.at(self.seen, channels[alive], images)

    def result(self) -> Floats:
        """Return the means, NaN where there was nothing."""
        with np.errstate(invalid="ignore"):
            return self.total / np.where(self.seen > 0, self.seen, np.nan)


class _Spread:
    """The variance of every row of a matrix that comes in pieces (Chan et al. 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        new = rows.shape[1]
        exact = rows.double()
        mean = exact.mean(1)
        centred = exact - mean[:, None]
        squares = torch.einsum("ij,ij->i", centred, centred)  # sooner than by var_mean on a CPU
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = new, mean, squares
            return
        total, apart = self.count + new, mean - self.mean
        self.squares = self.squares + squares + apart.square() * (self.count * new / total)
        self.mean = self.mean + apart * (new / total)
        self.count = total

    def variance(self) -> Floats | None:
        """Return the variances, (rows,); None where nothing came."""
        return None if self.squares is None else (self.squares / self.count).cpu().numpy()


class _Joint:
    """How the channels of an input vary together, in float64: their means over an image, and what is left of them."""

    def __init__(self) -> None:
        self.ids: Ids | None = None
        self.images = self.values = 0
        self.origin = self.sums = self.between = self.within = torch.zeros(0, dtype=torch.float64)

    def add(self, ids: Ids, values: Tensor) -> None:
        """Count values, (rows, images, positions), of rows that have these ids; −1 for what always stays."""
        alike = rows_alike(ids)
        if alike is None:
            return
        found, order = alike
        values = values[torch.from_numpy(order).to(values.device)].double()
        values = values.unflatten(0, (len(found), -1)).transpose(1, 2).flatten(2)  # several rows of an id are positions
        means = values.mean(2)
        if self.ids is None:  # sums of what lies around zero lose no digits when means are taken out
            self.ids, self.origin = found, means.mean(1, keepdim=True)
            self.sums = torch.zeros_like(self.origin[:, 0])
            self.between = self.within = means.new_zeros(len(found), len(found))
        rest = (values - means[:, :, None]).flatten(1)
        means = means - self.origin
        self.images, self.values = self.images + means.shape[1], self.values + rest.shape[1]
        self.sums = self.sums + means.sum(1)
        self.between, self.within = self.between + means @ means.T, self.within + rest @ rest.T

    def covariance(self) -> Covariance | None:
        """Return the ids, rising, and both covariances; None where nothing came."""
        if self.ids is None:
            return None
        mean = self.sums / self.images
        return self.ids, (self.between / self.images - torch.outer(mean, mean)).cpu(), (self.within / self.values).cpu()


def rows_alike(ids: Ids) -> tuple[Ids, Ids] | None:
    """Return the ids that there are, rising, and the rows that have them, one id after the other, as many for each.

    None where there is none, or one has more rows than another: what is flattened has a row for every position.
    """
    order = np.argsort(ids, kind="stable")
    order = order[ids[order] >= 0]
    found, counts = np.unique(ids[order], return_counts=True)
    return (found, order) if len(found) and (counts == counts[0]).all() else None
