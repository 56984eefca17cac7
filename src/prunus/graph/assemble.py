"""From a trace's labels to its channel graph: join what is united, drop what is frozen, group what runs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunus.graph.channels import (
    Activation,
    ChannelGraph,
    Contraction,
    Freeze,
    Ids,
    LabelledTensor,
    Layer,
    Norm,
    Order,
    Site,
    SizeSetting,
)
from prunus.graph.findings import Sited
from prunus.graph.grouping import groups_of
from prunus.graph.labels import Fields, Frozen, Owner, varying
from prunus.graph.layout import bundle_signatures
from prunus.graph.uses import Names, Traced, Use, runs_of


class Assembly:
    """Builds the channel graph of a finished trace; keeps what tells how labels became channel ids."""

    def __init__(self, traced: Traced, levels: Mapping[int, Sequence[Mapping[int, int]]] | None = None) -> None:
        self.traced = traced
        self.levels = dict(levels or {})
        tape, layout = traced.tape, traced.layout
        self.modules = traced.modules
        self.names = Names(traced.state.tensors)
        self.uses = [Use(tape, found, self.names) for found in traced.evaluated.contractions]
        known = {use.weight for use in self.uses}
        more = [Use(tape, found, self.names) for found in traced.trained.contractions]
        self.trained_uses = [use for use in more if use.weight not in known]
        self.reasons = self._reasons()
        self.tied = self._tied_whole()
        bundles = len(bundle_signatures(layout))
        stays = np.zeros(bundles, np.bool_)
        stays[layout.bundle[list(self.reasons)]] = True
        for bundle, reason in self.tied.items():
            if bundle not in self.levels:
                for component in np.flatnonzero(layout.bundle == bundle):
                    self.reasons.setdefault(int(component), reason)
                stays[bundle] = True
        self._spread_reasons(stays)
        prunable = np.flatnonzero(~stays[layout.bundle])
        self.id_of_component = np.full(layout.count, -1, np.int64)
        self.id_of_component[prunable] = np.arange(len(prunable))
        self.ids = np.full(len(layout.component) + 1, -1, np.int64)  # by label; the last entry answers label −1
        self.ids[:-1] = self.id_of_component[layout.component]
        self.prunable = prunable
        self._seen: dict[int, tuple[Tensor, Ids | None]] = {}

    def graph(self) -> ChannelGraph:
        """Return the channel graph."""
        tape = self.traced.tape
        layers = _unique(tuple(self._layer(use) for use in (*self.uses, *self.trained_uses) if use.weight is not None))
        return ChannelGraph(
            tensors=self._labelled(),
            groups=groups_of(self, layers),
            layers=layers,
            contractions=tuple(
                Contraction(u.weight, u.contracted.positions, u.input_axis) for u in self.uses if u.weight
            ),
            activations=self._activations(),
            frozen=self._freezes(),
            channel_count=len(self.prunable),
            settings=tuple(
                SizeSetting(module, attribute, (self.ids[labels.numpy()],), None, True)
                for module, attribute, labels in {s[:2]: s for s in tape.sizes}.values()
            ),
            sites=self._sites(),
            order=self._order() if tape.reorders else None,
        )

    def _sites(self) -> tuple[Site, ...]:
        """Say what the proof does where; every contraction of the trace has one, in the same order."""
        found = []
        weights = iter([use.weight or "" for use in self.uses])
        for s in self.traced.evaluated.sites:
            operands, results = self.many_fields(s.operands), self.many_fields(s.results)
            weight = "" if s.gathers else next(weights)
            found.append(Site(s.op, s.index, s.gathers, operands, results, self._runs(s), weight))
        return tuple(found)

    def many_fields(self, tensors: Sequence[Fields]) -> tuple[tuple[Ids, ...], ...]:
        """Return fields of ids for fields of labels."""
        return tuple(self.fields(fields) for fields in tensors)

    def fields(self, fields: Fields) -> tuple[Ids, ...]:
        """Return fields of ids for the fields of one tensor; those that are always kept are left out."""
        found = [self._ids_of(own) for own in fields]
        return tuple(ids for ids in found if ids is not None)

    def _ids_of(self, own: Tensor) -> Ids | None:
        """Return the channel ids of a field, which many tensors may carry; None where none varies."""
        entry = self._seen.get(id(own))
        if entry is None:
            ids = self.ids[own.numpy()]
            entry = self._seen[id(own)] = (own, ids if ids.max() >= 0 else None)
        return entry[1]

    def _runs(self, site: Sited) -> tuple[tuple[int, ...], ...]:
        """Return the axes that the channels of a site's fields run along, of those that `fields` returns."""
        return tuple(
            tuple(run for own, run in zip(fields, runs, strict=True) if self._ids_of(own) is not None)
            for fields, runs in zip((*site.operands, *site.results), site.runs, strict=bool(site.runs))
        )

    def _reasons(self) -> dict[int, Frozen]:
        """Map each component that must stay to the first reason that was given for it."""
        component = self.traced.layout.component
        reasons: dict[int, Frozen] = {}
        for frozen in self.traced.tape.frozen:
            for c in np.unique(component[frozen.labels.numpy()]).tolist():
                reasons.setdefault(c, frozen)
        for c, op in self._out_of_order().items():
            reasons.setdefault(c, _because("a smaller network may have its channels in another order", op))
        everything = [*self.uses, *self.trained_uses]
        produced = np.zeros(self.traced.layout.count, np.bool_)
        consumed = produced.copy()
        makers: set[str] = set()
        for use in everything:
            if use.weight is not None and use.weight not in makers:  # as a layer, a weight is what it is used for first
                makers.add(use.weight)
                produced[component[use.output_labels]] = True
            consumed[component[use.input_labels]] = True
        for sites in (self.traced.evaluated.sites, self.traced.trained.sites):
            for site in sites:
                if site.gathers:
                    for own in (own for fields in site.operands for own in fields):
                        consumed[component[own[own >= 0].numpy()]] = True
        self.produced = produced
        unused = _because("no layer consumes it")
        for c in np.flatnonzero(produced & ~consumed).tolist():
            reasons.setdefault(c, unused)
        unmade = _because("no layer produces it")
        for c in np.flatnonzero(~produced).tolist():
            reasons.setdefault(c, unmade)
        return reasons

    def _out_of_order(self) -> dict[int, str]:
        """Map the components that an operation takes in an order which a smaller network may not have to its name.

        Where channels are moved about, only those that run through the same places, and come in the order in which
        they are produced, stay in order among themselves.
        """
        found: dict[int, str] = {}
        layout = self.traced.layout
        for findings in (self.traced.evaluated, self.traced.trained) if self.traced.tape.reorders else ():
            for site in findings.sites:
                for own in site.operands[0] if site.ordered is not None else ():
                    axis = site.ordered
                    if axis not in varying(own):
                        continue
                    for run in own.movedim(axis, -1).reshape(-1, own.shape[axis]).numpy():
                        components = layout.component[run[run >= 0]]
                        kinds = layout.signature[components]
                        new = kinds[1:] != kinds[:-1]
                        if 1 + int(new.sum()) > len(np.unique(kinds)) or (~new & (np.diff(components) < 0)).any():
                            found.update(dict.fromkeys(components.tolist(), site.op))
        for use in (*self.uses, *self.trained_uses) if self.traced.tape.reorders else ():
            if self.names.of(use.contracted.weight) is not None:  # not one that is computed
                found.update(dict.fromkeys(_mixed_copies(layout.component[use.input_labels]), ""))
        return found

    def _spread_reasons(self, stays: npt.NDArray[np.bool_]) -> None:
        """Let what counts together with something that stays stay for the same reason."""
        bundles = self.traced.layout.bundle.tolist()
        produced = self.produced.tolist()
        first: dict[int, Frozen] = {}
        for c, reason in self.reasons.items():
            bundle = bundles[c]
            if produced[c] or bundle not in first:
                first[bundle] = reason
        for c in np.flatnonzero(stays[self.traced.layout.bundle]).tolist():
            self.reasons.setdefault(c, first[bundles[c]])

    def _tied_whole(self) -> dict[int, Frozen]:
        """Find the bundles that some width lies in as a whole: no channel of it can go alone."""
        layout = self.traced.layout
        frozen = set(layout.bundle[list(self.reasons)].tolist())
        widest: Counter[int] = Counter()
        for owner, low, high in self.ranges(layout.bundle[layout.component]):
            if owner.size > 1 and low == high and low not in frozen:
                widest[low] = max(widest[low], owner.size)
        return {bundle: self._tied_because(bundle, size) for bundle, size in widest.items()}

    def ranges(self, values: npt.NDArray[np.int64]) -> list[tuple[Owner, int, int]]:
        """Return every owner of a run of labels with the least and the largest of the run's values."""
        owners = self.traced.tape.owners
        if not owners:
            return []
        starts = np.array([owner.start for owner in owners])
        least, largest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        return list(zip(owners, least.tolist(), largest.tolist(), strict=True))

    def _tied_because(self, bundle: int, size: int) -> Frozen:
        """Say which operation coupled a whole width first."""
        reason = f"its {size} channels are all coupled with one another"
        layout, tape = self.traced.layout, self.traced.tape
        for (labels, _), (op, where) in zip(tape.ties, tape.tied_at, strict=True):
            if (layout.bundle[layout.component[labels.numpy()]] == bundle).any():
                return _because(reason, op, where)
        return _because(reason)

    def _layer(self, use: Use) -> Layer:
        """Describe one contraction as a layer: its tensors, and the BatchNorm that reads it directly."""
        contracted, weight = use.contracted, str(use.weight)
        norm, last = None, contracted.result
        for seen in self.traced.evaluated.norms:
            if seen.source is contracted.result:
                weight_name, bias_name, mean, var = (self._name_of(tensor) for tensor in seen.tensors)
                norm = Norm(weight_name, bias_name, mean, var, seen.eps)
                last = seen.result
                break
        name = (
            weight.partition(".parametrizations.")[0] if ".parametrizations." in weight else weight.rpartition(".")[0]
        )
        channels = self.ids[use.outputs]
        tensor = self.traced.state.tensors[weight]
        if use.output_axis == 0 and len(channels) > tensor.shape[0] and contracted.weight is not tensor:
            filters = self.traced.tape.along(tensor, 0, "")  # the result has them once an example, say
            channels = self.ids[filters.numpy()]
        return Layer(
            name or weight,
            weight,
            self._name_of(contracted.bias),
            norm,
            channels,
            use.output_axis == 1,
            contracted.groups,
            any(read is last for read in self.traced.evaluated.rectified),
        )

    def _name_of(self, tensor: Tensor | None) -> str | None:
        return None if tensor is None else self.names.of(tensor)

    def _labelled(self) -> dict[str, LabelledTensor]:
        """Describe every tensor of the network by the ids along its axes."""
        state = self.traced.state
        return {
            name: LabelledTensor(
                name=name,
                shape=tuple(tensor.shape),
                dtype=tensor.dtype,
                is_parameter=name in state.parameters,
                fields=self.fields(self.traced.tape.read(tensor)),
                is_saved=name in state.saved,
            )
            for name, tensor in state.tensors.items()
        }

    def _activations(self) -> tuple[Activation, ...]:
        """Say which channels each non-linearity's result carries along axis 1; those without are left out."""
        found = []
        for index, tensor in enumerate(self.traced.evaluated.activations):
            for own in self.traced.tape.read(tensor):
                if tensor.dim() > 1 and varying(own) == {1}:
                    channels = self.ids[own.reshape(-1).numpy()]
                    if (channels >= 0).any():
                        found.append(Activation(index, channels))
        return tuple(found)

    def _freezes(self) -> tuple[Freeze, ...]:
        """Report every frozen width once: its first tensor, the reason and how many of its channels are kept for it."""
        component = self.traced.layout.component
        stays = np.zeros(self.traced.layout.count, np.bool_)
        stays[list(self.reasons)] = True
        stays &= self.produced
        counted: Counter[tuple[str, str, str, str]] = Counter()
        for owner, _, some in self.ranges(stays[component].astype(np.int64)):
            run = component[owner.start : owner.start + owner.size]
            if owner.tensor and some and stays[run].any():
                found = np.unique(run[stays[run]])
                stays[found] = False  # each is reported once, with its first tensor
                why = [self.reasons[c] for c in found.tolist()]
                times = Counter(map(id, why))
                for reason in {id(reason): reason for reason in why}.values():
                    counted[owner.tensor, reason.reason, reason.op, reason.where] += times[id(reason)]
        return tuple(Freeze(tensor, why, n, op, where) for (tensor, why, op, where), n in counted.items())

    def _order(self) -> Order:
        return Order(runs_of(self.traced), self.traced.layout.signature, self.id_of_component)


def _mixed_copies(run: Ids) -> list[int]:
    """Return the components that come several times along an axis, if their copies lie in no order that can be told.

    Copies side by side, or the whole run repeated, stay so in a smaller network; which copy is which, a run that was
    shuffled does not say.
    """
    known, counts = np.unique(run, return_counts=True)
    several = known[counts > 1]
    if not len(several):
        return []
    copies = run[np.isin(run, several)]
    starts = np.flatnonzero(np.diff(copies, prepend=-1))
    lengths, block = np.diff(starts, append=len(copies)), copies[starts][: len(several)]
    repeated = len(starts) % len(several) == 0 and np.array_equal(
        copies[starts], np.tile(block, len(starts) // len(several))
    )
    return [] if repeated and (lengths == lengths[0]).all() else several.tolist()


def _because(reason: str, op: str = "", where: str = "") -> Frozen:
    """Return a reason that concerns no labels of its own."""
    return Frozen(torch.full((0,), -1), reason, op, where)


def _unique(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Keep the first of the layers that share a weight (a module that runs several times)."""
    return tuple({layer.weight: layer for layer in reversed(layers)}.values())[::-1]
