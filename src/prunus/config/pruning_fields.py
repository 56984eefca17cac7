"""The fields of a run's configuration that say how channels are chosen and removed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator

from prunus.config.fields import Multiple, Real, Steps, Whole, as_number, flag


class PruningFields(BaseModel):
    """How channels are chosen and removed."""

    schedule: Literal["one-shot", "iterative"] = flag(
        "one-shot",
        "Pruning",
        "SCHEDULE",
        "Remove at once (one-shot), or in several rounds with training between (iterative).",
        "iterative",
    )
    rounds: Whole = flag(3, "Pruning", "N", "Rounds of the iterative schedule.", "3", ge=1, le=100)
    allocation: Literal["global", "local", "search"] = flag(
        "global",
        "Pruning",
        "HOW",
        "Compare channels across layers (global), prune every layer alike (local), or search for the widths that keep "
        "most accuracy on held-out images (search).",
        "search",
    )
    search_minutes: Real = flag(
        5.0, "Pruning", "MINUTES", "Time for the search of widths (allocation search).", "10", gt=0, le=100_000
    )
    min_channels: Whole | None = flag(
        None, "Pruning", "N", "Channels that stay in every layer at least. [default: a tenth of them]", "8", ge=1
    )
    round_to: Multiple = flag(
        1,
        "Pruning",
        "N|auto",
        "Keep multiples of this many channels; auto measures which one the --runtime likes.",
        "8",
    )
    drop_branches: Whole = flag(
        0,
        "Pruning",
        "N",
        "Leave out so many residual branches as a whole, before channels are chosen: those that change the outputs "
        "least for the MACs that they take. Fewer layers are faster than thinner ones.",
        "3",
        ge=0,
        le=1000,
    )
    criterion: str | None = flag(
        None,
        "Pruning",
        "NAME",
        "Another score, e.g. l1_norm, taylor, delivered_energy or the control, random. [default: the method's own]",
        "l1_norm",
    )
    degree: Literal["weight", "activation", "hoyer"] = flag(
        "weight",
        "Pruning",
        "DEGREE",
        "Sparsity of a channel (channel-sparsity): its small weights, its zero activations, or Hoyer's measure.",
        "activation",
    )
    threshold: Real = flag(
        0.1, "Pruning", "T", "A weight is small below T times its layer's RMS (channel-sparsity, weight).", "0.1", ge=0
    )
    lam: Real = flag(
        1.0, "Pruning", "LAMBDA", "Weight of the L2 term (channel-sparsity); 0 is the plain method.", "1.0", ge=0
    )
    calibrate_options: bool = flag(
        False,
        "Pruning",
        "",
        "Choose degree, threshold and lam (channel-sparsity) by accuracy on validation images; writes options.json.",
        "true",
    )
    penalty: Literal["group_lasso", "bn_scale", "sparsity_degree"] = flag(
        "group_lasso",
        "Pruning",
        "NAME",
        "What sparse training lowers: norms of filters, BatchNorm's scales, or 1 - the squared soft sparsity degree.",
        "bn_scale",
    )
    rho: Real = flag(1e-3, "Pruning", "RHO", "Weight of that penalty.", "1e-3", ge=0, le=1e6)
    rho_schedule: Literal["constant", "linear", "cubic"] = flag(
        "linear",
        "Pruning",
        "SCHEDULE",
        "How rho grows over the first half of sparse training: linear, cubic (fast first), or constant, at once.",
        "cubic",
    )
    norm: Annotated[Literal[1, 2], BeforeValidator(as_number)] = flag(
        2, "Pruning", "P", "Norm of the fused filter (fused_conv_bn): 1 or 2.", "1"
    )
    constant: bool = flag(False, "Pruning", "", "Add the fused constant part (fused_conv_bn).", "true")
    variance: Literal["calibrated", "data-free"] = flag(
        "calibrated",
        "Pruning",
        "HOW",
        "Where delivered_energy has a channel's variance from: images (calibrated), or its BatchNorm (data-free).",
        "data-free",
    )
    normalize: Literal["none", "mean", "max", "gaussian", "size", "cost", "latency"] | None = flag(
        None,
        "Pruning",
        "HOW",
        "How layers compare: none, mean, max, gaussian, size, cost (per what is saved of what the budget limits: MACs, "
        "parameters, bytes or time) or latency (per time saved). [default: the criterion's own]",
        "mean",
    )
    recover: Steps = flag(
        "reconstruct",
        "Pruning",
        "STEPS",
        "What gives accuracy back after a removal, before training: compensate, reconstruct, recalibrate, several with "
        "commas, or none.",
        "reconstruct,recalibrate",
    )
    calibration_images: Whole = flag(
        1024,
        "Pruning",
        "N",
        "Training images that --recover, and criteria that measure, look at.",
        "1024",
        ge=2,
        le=1_000_000,
    )
