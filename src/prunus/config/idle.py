"""Options that say nothing where they are given: each is refused, with what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunus.config.messages import flag_name

if TYPE_CHECKING:
    from prunus.config.run_config import RunConfig

# Options that say something to some methods, schedules or criteria alone; to others they would silently do nothing.
_TRAINED_BEFORE = ("refit-error", "channel-sparsity")  # methods that prune a trained network, and fine-tune it
_ONLY_FOR: dict[str, tuple[str, tuple[str, ...]]] = {
    "search_epochs": ("method", ("layer-fusion",)),
    "from_scratch": ("method", ("layer-fusion",)),
    "remove_after": ("method", ("layer-fusion",)),
    "schedule": ("method", _TRAINED_BEFORE),
    "rounds": ("schedule", ("iterative",)),
    "sparse_epochs": ("method", _TRAINED_BEFORE),
    "calibrate_options": ("criterion_name", ("channel_sparsity",)),
    "search_minutes": ("allocation", ("search",)),
    "degree": ("criterion_name", ("channel_sparsity",)),
    "threshold": ("criterion_name", ("channel_sparsity",)),
    "lam": ("criterion_name", ("channel_sparsity",)),
    "norm": ("criterion_name", ("fused_conv_bn",)),
    "constant": ("criterion_name", ("fused_conv_bn",)),
    "variance": ("criterion_name", ("delivered_energy",)),
}


_SPARSE = ("penalty", "rho", "rho_schedule")  # for sparse training
_CALIBRATED = ("degree", "threshold", "lam")  # chosen by --calibrate-options


def idle_options(config: RunConfig) -> list[str]:
    """List the options that would silently do nothing, and why."""
    idle = []
    if config.from_scratch and config.epochs != type(config).model_fields["epochs"].default:
        idle.append(
            f"--epochs {config.epochs} does nothing here: with --from-scratch there is no dense training; "
            "type --search-epochs and --finetune-epochs"
        )
    if config.drop_branches and config.from_scratch:
        idle.append(
            "--drop-branches does not go with --from-scratch: what a branch is worth, a trained network says; "
            "leave one of them out"
        )
    for key, (owner, wanted) in _ONLY_FOR.items():
        value, actual = getattr(config, key), getattr(config, owner)
        if value != type(config).model_fields[key].default and actual not in wanted:
            owner_words = owner.removesuffix("_name")
            idle.append(
                f"{flag_name(key)} {value} does nothing here: it is for {owner_words} {' or '.join(wanted)}, and this "
                f"is {owner_words} {actual}; leave it out, or type {flag_name(owner_words)} {wanted[0]}"
            )
    if not config.sparse_epochs:
        idle += [
            f"{given} does nothing here: it is for sparse training, and there is none; add --sparse-epochs 10"
            for given in _given(config, _SPARSE)
        ]
    if config.calibrate_options and not config.sparse_epochs:  # whose index and penalty go by them
        idle += [
            f"{given} does nothing here: --calibrate-options chooses it; leave one of the two out"
            for given in _given(config, _CALIBRATED)
        ]
    if config.allocation == "search" and (config.method == "layer-fusion" or config.schedule != "one-shot"):
        idle.append(
            "--allocation search does nothing here: it is for schedule one-shot, and not for method layer-fusion, "
            "which finds widths while it trains"
        )
    if config.compile and config.sync_batchnorm:
        idle.append(
            "--compile does not go with --sync-batchnorm, which talks to other processes: leave one of them out"
        )
    return idle + _idle_recovery(config) + _idle_beside_new_weights(config)


def _idle_recovery(config: RunConfig) -> list[str]:
    looked_at = (
        bool(config.recovery_steps)
        or config.criterion_name != "channel_sparsity"
        or config.degree == "activation"
        or config.calibrate_options
        or config.allocation == "search"
        or config.int8
        or config.drop_branches > 0
    )
    trained = config.finetune_epochs > 0 or config.reinitialize
    needs = {
        "distill": (trained, "it is for the training after the removal, and --finetune-epochs is 0"),
        "temperature": (config.distill > 0, "it is for --distill, which is 0"),
        "ema": (trained or config.checkpoint is None, "there is a --checkpoint, and --finetune-epochs is 0"),
        "calibration_images": (looked_at, "--recover is none, and the criterion looks at weights alone"),
        "int8_epochs": (config.int8, "it is for the training with 8-bit integers; add --int8"),
    }
    return [
        f"{flag_name(key)} {getattr(config, key)} does nothing here: {reason}"
        for key, (there, reason) in needs.items()
        if not there and getattr(config, key) != type(config).model_fields[key].default
    ]


def _idle_beside_new_weights(config: RunConfig) -> list[str]:
    if not config.reinitialize:
        return []
    # --finetune-epochs is not refused: recipes have it, and configurations that share one with other runs.
    reason = "with --reinitialize the small network gets new weights"
    idle = [f"{given} does nothing here: {reason}" for given in _given(config, ("recover",))]
    if config.schedule == "iterative":
        idle.append("--schedule iterative trains between its rounds, which --reinitialize does not: leave one out")
    return idle


def _given(config: RunConfig, keys: tuple[str, ...]) -> list[str]:
    """List the options among `keys` that differ from their defaults, as they are typed."""
    values = {key: getattr(config, key) for key in keys}
    return [
        f"{flag_name(key)} {value}" for key, value in values.items() if value != type(config).model_fields[key].default
    ]
