"""Give the parameters and buffers of a network their labels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from prunus.graph.members import Members
from prunus.graph.tape import Tape


def label_all(tape: Tape, members: Members, state: Mapping[str, Tensor]) -> None:
    """Label every tensor of a network once, by the first of its names."""
    groups = {
        f"{name}.weight" if name else "weight": module.groups
        for name, module in members.modules.items()
        if isinstance(module, nn.modules.conv._ConvNd)
    }
    labelled: set[int] = set()
    for name, tensor in state.items():
        if id(tensor) not in labelled:
            labelled.add(id(tensor))
            count = groups.get(name, 1)
            label_tensor(tape, name, tensor, count if tensor.dim() > 2 and tensor.shape[1] > 1 else 1)


def label_tensor(tape: Tape, name: str, tensor: Tensor, groups: int = 1) -> None:
    """Give every index of every axis of a parameter or buffer a label of its own.

    The weight of a grouped convolution has a label for every input channel of every group: its input field varies
    along both axes.
    """
    fields = []
    for axis, size in enumerate(tensor.shape):
        if size > 1:
            shape = [1] * tensor.dim()
            if axis == 1 and groups > 1:
                rows = tensor.shape[0] // groups
                labels = tape.new_labels(name, axis, groups * size, groups).view(groups, size)
                shape[:2] = [tensor.shape[0], size]
                fields.append(labels.repeat_interleave(rows, 0).view(shape))
                tape.columns.append((int(labels[0, 0]), int(labels[-1, -1]) + 1))
                tape.steps.append((*tape.columns[-1], 1))
            else:
                shape[axis] = size
                fields.append(tape.new_labels(name, axis, size).view(shape))
    tape.write(tensor, fields, is_compact=True)
