"""Give the parameters and buffers of a network their labels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from prunus.graph.fitting import BATCH_NORMS, CONVOLUTIONS
from prunus.graph.members import Members
from prunus.graph.tape import Tape


def label_all(tape: Tape, members: Members, state: Mapping[str, Tensor]) -> None:
    """Label every tensor of a network once, by the first of its names.

    What a layer or a BatchNorm holds for each of its filters or channels beside its first tensor gets the same labels.
    """
    groups = {
        f"{name}.weight" if name else "weight": module.groups
        for name, module in members.modules.items()
        if isinstance(module, CONVOLUTIONS)
    }
    heads = _heads(members)
    runs: dict[str, Tensor] = {}
    labelled: set[int] = set()
    for name, tensor in state.items():
        if id(tensor) in labelled:
            continue
        labelled.add(id(tensor))
        run = runs.get(heads.get(name, ""))
        if run is not None and run.numel() == tensor.numel():
            tape.owned_too(name, run)
            tape.write(tensor, [run], is_compact=True)
            continue
        count = groups.get(name, 1)
        label_tensor(tape, name, tensor, count if tensor.dim() > 2 and tensor.shape[1] > 1 else 1)
        if tensor.dim() and tensor.shape[0] > 1:
            runs[name] = tape.read(tensor)[0].view(-1)


def _heads(members: Members) -> dict[str, str]:
    """Map the vectors that torch's modules hold to the tensor of the same module whose first axis they go with."""
    heads: dict[str, str] = {}
    for name, module in members.modules.items():
        prefix = f"{name}." if name else ""
        if isinstance(module, BATCH_NORMS):
            tensors = {**module._parameters, **module._buffers}
            names = [key for key in ("weight", "bias", "running_mean", "running_var") if tensors.get(key) is not None]
        elif isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and not module.transposed):
            names = ["weight", "bias"]
        else:
            continue
        heads.update({f"{prefix}{key}": f"{prefix}{names[0]}" for key in names[1:]})
    return heads


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
