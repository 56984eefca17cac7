"""The sparse training stage: a penalty draws channels towards zero before any are removed."""

from __future__ import annotations

from torch import nn

from prunus.deploy import load, save
from prunus.graph.channels import ChannelGraph
from prunus.graph.trace import trace
from prunus.methods import SparseTraining
from prunus.pipeline import recipes
from prunus.pipeline.run import Run

_BATCH = 64  # images that are measured at once
_RAMP_SHARE = 0.5  # of the epochs, until ρ has its whole value


def obtain_sparse(run: Run, dense: nn.Module) -> nn.Module:
    """Return the network after its sparse training: from the run folder, or trained now; in eval mode, on the CPU.

    Without sparse training that is the dense network.
    """
    epochs = run.config.sparse_epochs
    if not epochs:
        return dense
    if run.folder.sparse.exists():
        run.say("sparse     done before")
    else:
        hook = sparse_hook(run, trace(dense, run.proof_inputs()))
        run.say(f"sparse     training with {run.config.penalty}, rho {run.config.rho:g}, for {epochs} epochs")
        run.train(dense, recipes.sparse(run), "sparse", hook)
        save(dense, run.folder.sparse, **run.identity)
    run.folder.drop_checkpoint("sparse")
    return load(run.folder.sparse)


def sparse_hook(run: Run, graph: ChannelGraph) -> SparseTraining:
    """Return the hook as the user wants it.

    Raises:
        ConfigError: its options do not go with each other, or with the network.
    """
    config = run.config
    return SparseTraining(
        graph,
        config.penalty,
        config.rho,
        schedule=config.rho_schedule,
        ramp_epochs=max(1, round(_RAMP_SHARE * config.sparse_epochs)),
        degree=config.degree,
        t=config.threshold,
        lam=config.lam,
        calibration=run.calibration().split(_BATCH) if config.degree == "activation" else None,
    )
