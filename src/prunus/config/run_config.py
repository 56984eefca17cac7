"""The fields of a run's configuration, each described once for the file, the flags and the messages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from prunus.config.fields import Fraction, Limit, Real, Steps, Whole, as_number, flag
from prunus.config.idle import idle_options
from prunus.config.messages import BUDGET_ERROR
from prunus.config.plain_yaml import dump_mapping
from prunus.errors import ConfigError


class RunConfig(BaseModel):
    """Everything that decides a run of `prunus compress`; written as config.yaml into its run folder.

    Budgets (`params`, `macs`, `size`, `pruning_ratio`) stay as typed, numbers as numbers; all that are given must hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    model: str = flag(
        ..., "What", "NAME", "Network of the zoo, e.g. resnet20, vgg16_bn, mobilenetv2.", "resnet20", min_length=1
    )
    data: str = flag(
        ...,
        "What",
        "NAME|PATH",
        "digits, cifar10, cifar100, or the path of an image folder or archive.",
        "digits",
        min_length=1,
    )
    method: Literal["channel-sparsity", "layer-fusion"] = flag(
        "channel-sparsity",
        "What",
        "METHOD",
        "channel-sparsity (train, prune, fine-tune) or layer-fusion (search while training).",
        "layer-fusion",
    )
    checkpoint: Path | None = flag(
        None,
        "What",
        "FILE",
        "Trained dense network (.safetensors) to start from, instead of training one.",
        "dense.safetensors",
    )
    out: Path | None = flag(
        None, "What", "FOLDER", "Run folder. [default: runs/<model>_<data>_<method>_<budget>]", "runs/a"
    )

    size: Limit | None = flag(
        None, "Budget", "BYTES", "At most this many bytes on disk (0.64MB = 640,000), or a fraction.", "0.64MB"
    )
    macs: Limit | None = flag(
        None, "Budget", "COUNT", "At most this many multiply-adds (20M), or a fraction of the dense ones.", "0.5"
    )
    params: Limit | None = flag(
        None, "Budget", "COUNT", "At most this many parameters (100k), or a fraction of the dense ones.", "0.4"
    )
    pruning_ratio: Limit | None = flag(None, "Budget", "FRACTION", "Fraction of channels to remove.", "0.3")

    epochs: Whole = flag(30, "Training", "N", "Epochs of dense training.", "30", ge=1, le=100_000)
    search_epochs: Whole = flag(
        15,
        "Training",
        "N",
        "Epochs of the search at most (layer-fusion); it stops earlier once the structure is stable.",
        "15",
        ge=1,
        le=100_000,
    )
    sparse_epochs: Whole = flag(
        0,
        "Training",
        "N",
        "Epochs of sparse training between the dense network and the removal (channel-sparsity); 0 is none.",
        "10",
        ge=0,
        le=100_000,
    )
    from_scratch: bool = flag(
        False,
        "Training",
        "",
        "Search from random weights, without a dense training (layer-fusion); a checkpoint is compared with only.",
        "true",
    )
    remove_after: Whole = flag(
        3,
        "Training",
        "N",
        "Epochs that a channel stays masked before it leaves the network that trains (layer-fusion); 0 for at the end.",
        "3",
        ge=0,
        le=100_000,
    )
    finetune_epochs: Whole = flag(
        15,
        "Training",
        "N",
        "Epochs after the removal; all rounds of an iterative schedule together.",
        "15",
        ge=0,
        le=100_000,
    )
    batch_size: Whole = flag(128, "Training", "N", "Images in a training step.", "128", ge=2, le=1_000_000)
    learning_rate: Real = flag(
        0.2, "Training", "RATE", "Peak learning rate of the dense training.", "0.1", gt=0, le=100
    )
    finetune_learning_rate: Real = flag(
        0.05,
        "Training",
        "RATE",
        "Peak learning rate of sparse training, the search and after the removal.",
        "0.02",
        gt=0,
        le=100,
    )
    weight_decay: Real = flag(5e-4, "Training", "X", "Weight decay, not on BatchNorm or biases.", "5e-4", ge=0, le=1)
    label_smoothing: Real = flag(0.0, "Training", "X", "Label smoothing.", "0.1", ge=0, lt=1)
    validation: Fraction = flag(
        0.1,
        "Training",
        "FRACTION|N",
        "Training images held out for every decision; the test set is read once, at the end.",
        "0.1",
        gt=0,
    )
    flip: bool | None = flag(None, "Training", "", "Mirror training images. [default: yes, except for digits]", "true")
    crop_padding: Whole | None = flag(
        None, "Training", "PIXELS", "Shift of training images. [default: 1/8 of the side]", "4", ge=0, le=64
    )
    cutout: Whole | None = flag(
        None, "Training", "PIXELS", "Side of the square cut out of training images. [default: none]", "8", ge=0, le=512
    )

    distill: Real = flag(
        0.0, "Training", "W", "Weight of the dense network's answers in the loss after the removal.", "0.5", ge=0, le=1
    )
    temperature: Real = flag(
        4.0, "Training", "T", "Temperature at which these answers are compared.", "4", gt=0, le=1000
    )
    ema: Real = flag(
        0.0,
        "Training",
        "DECAY",
        "Average the weights in the dense training and after the removal; 0.999 looks back about 1000 steps.",
        "0.999",
        ge=0,
        lt=1,
    )

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
    round_to: Whole = flag(1, "Pruning", "N", "Keep multiples of this many channels.", "8", ge=1, le=1024)
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
        2, "Pruning", "P", "Norm of the fused filter (layer-fusion): 1 or 2.", "1"
    )
    constant: bool = flag(False, "Pruning", "", "Add the fused constant part (layer-fusion).", "true")
    variance: Literal["calibrated", "data-free"] = flag(
        "calibrated",
        "Pruning",
        "HOW",
        "Where delivered_energy has a channel's variance from: images (calibrated), or its BatchNorm (data-free).",
        "data-free",
    )
    normalize: Literal["none", "mean", "max", "gaussian", "size", "cost"] | None = flag(
        None,
        "Pruning",
        "HOW",
        "How layers compare: none, mean, max, gaussian, size or cost (per MAC saved). [default: the criterion's own]",
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

    seed: Whole = flag(0, "Running", "N", "Seed of every random choice.", "0", ge=0, lt=2**31)
    device: str = flag(
        "auto", "Running", "DEVICE", "cpu, cuda, cuda:1, or auto.", "cpu", pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$"
    )
    threads: Whole | None = flag(
        None, "Running", "N", "Threads on the CPU. [default: torch's own choice]", "2", ge=1, le=1024
    )
    precision: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "Running", "TYPE", "auto, float32 or bfloat16.", "float32"
    )
    skip_bad_images: bool = flag(
        False, "Running", "", "Leave unreadable images out, and count them, instead of stopping.", "true"
    )
    cache_dir: Path | None = flag(
        None, "Running", "FOLDER", "Where decoded data sets are kept. [default: the user's cache]", ".cache"
    )

    @field_validator("size", "macs", "params", "pruning_ratio")
    @classmethod
    def _is_a_budget(cls, value: Limit | None, info: ValidationInfo) -> Limit | None:
        if value is not None:
            from prunus.budget import Budget  # imports torch, which help and most errors do without

            try:
                Budget(**{str(info.field_name): value})
            except ConfigError as error:
                raise PydanticCustomError(BUDGET_ERROR, "{reason}", {"reason": str(error)}) from None
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = [*_missing_budget(self), *idle_options(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def run_dir(self) -> Path:
        """The run folder: `out`, or a name under runs/ made of network, data, method, budget and seed."""
        if self.out is not None:
            return self.out
        data = Path(self.data).name.split(".")[0]
        budget = "_".join(f"{key}-{value}" for key, value in self.budgets.items())
        return Path("runs") / f"{self.model}_{data}_{self.method}_{budget}_seed-{self.seed}".replace("/", "-").replace(
            "%", "pc"
        )

    @property
    def budgets(self) -> dict[str, int | float | str]:
        """The budgets that were given, as typed: a subset of params, macs, size and pruning_ratio."""
        given = {key: getattr(self, key) for key in ("size", "macs", "params", "pruning_ratio")}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def criterion_name(self) -> str:
        """The key of CRITERIA that scores the channels."""
        return self.criterion or {"channel-sparsity": "channel_sparsity", "layer-fusion": "fused_conv_bn"}[self.method]

    @property
    def criterion_options(self) -> dict[str, object]:
        """The options of that criterion, by its own parameter names."""
        if self.criterion_name == "channel_sparsity":
            return {"degree": self.degree, "t": self.threshold, "lam": self.lam}
        if self.criterion_name == "fused_conv_bn":
            return {"norm": self.norm, "constant": self.constant}
        if self.criterion_name == "delivered_energy":
            return {"variance": self.variance}
        return {}

    @property
    def recovery_steps(self) -> tuple[str, ...]:
        """The steps of `recover`, in their order."""
        return () if self.recover == "none" else tuple(self.recover.split(","))

    def to_yaml(self) -> str:
        """Write the configuration as config.yaml, which `load_config` reads back equal."""
        return dump_mapping(self.model_dump(mode="json"))

    def differences(self, other: RunConfig) -> list[str]:
        """List what keeps a run of `other` from going on as this one: "epochs: 30 there, 20 here".

        Where and how fast it runs (MAY_CHANGE) does not count.
        """
        keys = [key for key in RunConfig.model_fields if key not in MAY_CHANGE]
        pairs = {key: (getattr(self, key), getattr(other, key)) for key in keys}
        return [f"{key}: {there} there, {here} here" for key, (here, there) in pairs.items() if here != there]


MAY_CHANGE = frozenset({"out", "threads", "device", "cache_dir"})  # the same run may go on elsewhere


def _missing_budget(config: RunConfig) -> list[str]:
    if config.budgets:
        return []
    return ["no budget is given: add one of --size 0.64MB, --macs 0.5, --params 0.4, --pruning-ratio 0.3"]
