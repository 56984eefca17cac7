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

    def __init__(self, tape: Tape, contracted: Contracted, names: Mapping[int, str]) -> None:
        weight = contracted.weight
        self.contracted = contracted
        self.outputs = contracted.outgoing.numpy()
        self.output_labels = self.outputs[self.outputs >= 0]
        inputs = contracted.incoming.numpy()
        self.input_labels = inputs[inputs >= 0]
        self.weight = names.get(weight.untyped_storage()._cdata)
        fields = sorted(tape.read(weight), key=lambda own: -len(varying(own)))  # those along one axis alone count
        axes = {a: own for own in fields for a in varying(own) if int(own.max()) >= 0}
        owners = {a: tape.owner(int(own.max())) for a, own in axes.items()}
        if self.weight is None and contracted.computed:
            self.weight = next(
                (owners[a].tensor or None for a in (contracted.output_axis, contracted.input_axis) if a in owners), None
            )
        self.input_axis = owners[contracted.input_axis].axis if contracted.input_axis in owners else None
        self.output_axis = owners[contracted.output_axis].axis if contracted.output_axis in owners else 0


def storage_names(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Map a tensor's storage, which its views share, to its first state-dict name."""
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.untyped_storage()._cdata, name)
    return names
