"""Re-estimate BatchNorm's running statistics, which the removal of channels has made wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.running import plainly
from prunus.recovery.batches import Batches, device_of
from prunus.recovery.watching import random_state_kept, result_copy


def recalibrate(pruned: nn.Module, batches: Tensor | Iterable[Tensor], *, frozen: Collection[str] = ()) -> nn.Module:
    """Return a copy of a network whose BatchNorm statistics are exact averages over the calibration batches.

    Every batch counts the same (what torch calls momentum None), a tensor is one batch, and within a batch variances
    are unbiased, as in training. All BatchNorms take the statistics of the batch as it passes; everything else runs in
    evaluation mode, without gradients. Nothing but the statistics differs from `pruned`, and a network without
    BatchNorm comes back equal. A BatchNorm that keeps no running statistics, or that does not run, is left.

    Args:
        pruned: any network; it is not changed.
        batches: inputs (N, C, H, W) as the network takes them, or an iterable of such.
        frozen: names of modules whose BatchNorms, and those inside them, keep the statistics that they have.

    Raises:
        ConfigError: there is no batch, `batches` can be gone through only once, a batch has one value a channel, or
            `frozen` names no module.
    """
    data = Batches(batches, device_of(pruned))
    made = result_copy(pruned)
    norms = _norms(made, frozen)
    if not norms:
        return made
    modes = {module: module.training for module in made.modules()}
    held = [_Held(norm) for norm in norms]
    made.eval()
    for one in held:
        one.start()
    with random_state_kept(), plainly():
        for batch in data:
            try:
                made(batch)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ConfigError(
                    f"a calibration batch of {len(batch)} has a single value a channel at a BatchNorm, which has no "
                    "variance; pass batches of at least two examples."
                ) from error
    for one in held:
        one.finish()
    for module, mode in modes.items():
        module.training = mode
    return made


class _Held:
    """One BatchNorm while its statistics are estimated, and what it is given back."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        self.norm = norm
        self.momentum, self.tracked = norm.momentum, norm.num_batches_tracked
        assert norm.running_mean is not None and norm.running_var is not None
        self.statistics = norm.running_mean.clone(), norm.running_var.clone()

    def start(self) -> None:
        norm = self.norm
        norm.momentum = None  # torch's way to say: the average of all
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=self.statistics[0].device)
        norm.training = True

    def finish(self) -> None:
        norm = self.norm
        ran = norm.num_batches_tracked is not None and int(norm.num_batches_tracked) > 0
        norm.momentum, norm.num_batches_tracked = self.momentum, self.tracked
        if not ran:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(self.statistics[0])
            norm.running_var.copy_(self.statistics[1])


def _norms(model: nn.Module, frozen: Collection[str]) -> list[nn.modules.batchnorm._BatchNorm]:
    names = (frozen,) if isinstance(frozen, str) else tuple(frozen)
    modules = dict(model.named_modules(remove_duplicate=False))
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ConfigError(f"frozen names {unknown[0]!r}, and this {type(model).__name__} has no module of that name.")
    kept = {id(module) for name in names for module in modules[name].modules()}
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
        and id(module) not in kept
    ]
