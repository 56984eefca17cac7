"""A finished trace, and what it says of each use of a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from prunus.graph.channels import Ids
from prunus.graph.findings import Contracted, Findings
from prunus.graph.labels import varying
from prunus.graph.layout import Layout, layout_of
from prunus.graph.tape import Tape


@dataclass(frozen=True)
class State:
    """The network's tensors by name, and which of the names are parameters and which are saved."""

    tensors: Mapping[str, Tensor]
    parameters: frozenset[str]
    saved: frozenset[str]


@dataclass(frozen=True)
class Traced:
    """A finished trace: its labels, what was found in both modes, and how they hang together."""

    tape: Tape
    evaluated: Findings
    trained: Findings
    state: State
    layout: Layout
    modules: Mapping[str, nn.Module]

    @classmethod
    def of(
        cls, modules: Mapping[str, nn.Module], tape: Tape, evaluated: Findings, trained: Findings, state: State
    ) -> Traced:
        """Join the labels of a trace."""
        return cls(tape, evaluated, trained, state, layout_of(tape), modules)


def runs_of(traced: Traced) -> dict[str, tuple[Ids, ...]]:
    """Return the component numbers along every tensor's axes, as fields."""
    component = np.append(traced.layout.component, -1)
    return {
        name: tuple(component[own.numpy()] for own in traced.tape.read(tensor))
        for name, tensor in traced.state.tensors.items()
    }


class Use:
    """One contraction, its weight found among the state dict's tensors, its labels as index arrays."""

    def __init__(self, tape: Tape, contracted: Contracted, names: Names) -> None:
        weight = contracted.weight
        self.contracted = contracted
        self.outputs = contracted.outgoing.numpy()
        self.output_labels = self.outputs[self.outputs >= 0]
        inputs = contracted.incoming.numpy()
        self.input_labels = inputs[inputs >= 0]
        self.weight = names.of(weight)
        fields = sorted(tape.read(weight), key=lambda own: -len(varying(own)))  # those along one axis alone count
        found = [(own, int(own.numpy().max())) for own in fields]
        axes = {a: label for own, label in found for a in varying(own) if label >= 0}
        owners = {a: tape.owner(label) for a, label in axes.items()}
        if self.weight is None and contracted.computed:
            self.weight = next(
                (owners[a].tensor or None for a in (contracted.output_axis, contracted.input_axis) if a in owners), None
            )
        self.input_axis = owners[contracted.input_axis].axis if contracted.input_axis in owners else None
        self.output_axis = owners[contracted.output_axis].axis if contracted.output_axis in owners else 0


class Names:
    """Finds the state-dict name of a tensor, or of what it is a view of; of several names, the first."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._by_id: dict[int, str] = {}
        for name, tensor in tensors.items():
            self._by_id.setdefault(id(tensor), name)
        self._by_storage: dict[int, str] | None = None

    def of(self, tensor: Tensor) -> str | None:
        """Return the name; None for a tensor that is computed."""
        name = self._by_id.get(id(tensor))
        if name is not None:
            return name
        if self._by_storage is None:
            self._by_storage = {}
            for key, held in self._tensors.items():
                self._by_storage.setdefault(held.untyped_storage()._cdata, key)
        return self._by_storage.get(tensor.untyped_storage()._cdata)
