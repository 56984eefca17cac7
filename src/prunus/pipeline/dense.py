"""The dense stage: a trained network as large as its builder made it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunus.deploy import load, read_header, save
from prunus.errors import FileFormatError, ModelError
from prunus.files import load_tensors
from prunus.pipeline import recipes
from prunus.pipeline.run import Run


def obtain_dense(run: Run) -> nn.Module:
    """Return the dense network: from the run folder, from `--checkpoint`, or trained now; in eval mode, on the CPU.

    With `--from-scratch` nothing is trained: without a checkpoint it is the network with its initial weights. All else
    was always read from dense.safetensors, so that a run that was interrupted and one that was not go the same way.
    """
    if run.folder.dense.exists():
        run.say("dense      done before: dense.safetensors")
    elif run.config.from_scratch and run.config.checkpoint is None:
        run.say("dense      not trained: the search starts from scratch")
        return run.build().eval()
    else:
        model = run.build()
        if run.config.checkpoint is not None:
            run.say(f"dense      from {run.config.checkpoint}")
            load_checkpoint(model, run.config.checkpoint, run)
        else:
            run.say(f"dense      training {run.config.model} for {run.config.epochs} epochs")
            run.train(model, recipes.dense(run), "dense")
        save(model, run.folder.dense, **run.identity)
    run.folder.drop_checkpoint("dense")
    return load(run.folder.dense)


def load_checkpoint(model: nn.Module, path: Path, run: Run) -> None:
    """Fill a dense network from a safetensors file of its state dict, by Prunus or by anybody.

    Raises:
        ModelError: the file is of another network; the message names what differs.
        FileFormatError: the file is cut short or corrupt.
    """
    _refuse_other_classes(path, run)
    tensors, _ = load_tensors(path, what="checkpoint")
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is not in this network" for name in tensors if name not in expected]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(wanted.shape)}"
        for name, wanted in expected.items()
        if name in tensors and tensors[name].shape != wanted.shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ModelError(
            f"the checkpoint {path} is no {run.config.model} for {len(run.data.classes)} classes "
            f"and {run.input_shape[0]} input channels: {shown}. Type the --model that it was saved from."
        )
    model.load_state_dict(tensors)


def _refuse_other_classes(path: Path, run: Run) -> None:
    try:
        header = read_header(path)
    except FileFormatError:
        return  # a plain state dict says nothing of itself; a broken file is reported when its tensors are read
    if header.classes and header.classes != run.data.classes:
        raise ModelError(
            f"the checkpoint {path} tells {', '.join(header.classes[:5])}… apart, "
            f"and {run.data.name} has {', '.join(run.data.classes[:5])}…: give the data it was trained on."
        )
