"""What a run is told: one validated, frozen object, from flags and a YAML file.

Keys of the file are the long flags' names with underscores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from prunus.config_errors import as_list, explain, flag_name
from prunus.errors import ConfigError


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    return value


def _as_number(value: object) -> object:
    """Turn "0.5" into 0.5 and "200000" into 200000, as a YAML file would; leave "0.64MB" to the budget."""
    if isinstance(value, str):
        for number in (int, float):
            try:
                return number(value)
            except ValueError:
                continue
        return value.strip()
    return _refuse_bool(value)


Whole = Annotated[int, BeforeValidator(_refuse_bool)]
Real = Annotated[float, BeforeValidator(_refuse_bool), Field(allow_inf_nan=False)]
Limit = Annotated[int | float | str, BeforeValidator(_as_number)]
Fraction = Annotated[int | float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]


def _flag(default: Any, panel: str, metavar: str, description: str, example: str, **limits: Any) -> Any:
    """Describe a field once, for the configuration, for the command line and for error messages."""
    extra: JsonDict = {"panel": panel, "metavar": metavar}
    return Field(default, description=description, examples=[example], json_schema_extra=extra, **limits)


class RunConfig(BaseModel):
    """Everything that decides a run of `prunus compress`; written as config.yaml into its run folder.

    Budgets (`params`, `macs`, `size`, `pruning_ratio`) stay as typed, numbers as numbers; all that are given must hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    model: str = _flag(
        ..., "What", "NAME", "Network of the zoo, e.g. resnet20, vgg16_bn, mobilenetv2.", "resnet20", min_length=1
    )
    data: str = _flag(
        ...,
        "What",
        "NAME|PATH",
        "digits, cifar10, cifar100, or the path of an image folder or archive.",
        "digits",
        min_length=1,
    )
    method: Literal["channel-sparsity", "layer-fusion"] = _flag(
        "channel-sparsity",
        "What",
        "METHOD",
        "channel-sparsity (train, prune, fine-tune) or layer-fusion (search while training).",
        "layer-fusion",
    )
    checkpoint: Path | None = _flag(
        None,
        "What",
        "FILE",
        "Trained dense network (.safetensors) to start from, instead of training one.",
        "dense.safetensors",
    )
    out: Path | None = _flag(
        None, "What", "FOLDER", "Run folder. [default: runs/<model>_<data>_<method>_<budget>]", "runs/a"
    )

    size: Limit | None = _flag(
        None, "Budget", "BYTES", "At most this many bytes on disk (0.64MB = 640,000), or a fraction.", "0.64MB"
    )
    macs: Limit | None = _flag(
        None, "Budget", "COUNT", "At most this many multiply-adds (20M), or a fraction of the dense ones.", "0.5"
    )
    params: Limit | None = _flag(
        None, "Budget", "COUNT", "At most this many parameters (100k), or a fraction of the dense ones.", "0.4"
    )
    pruning_ratio: Limit | None = _flag(None, "Budget", "FRACTION", "Fraction of channels to remove.", "0.3")

    epochs: Whole = _flag(30, "Training", "N", "Epochs of dense training.", "30", ge=1, le=100_000)
    search_epochs: Whole = _flag(
        15,
        "Training",
        "N",
        "Epochs of the search at most (layer-fusion); it stops earlier once the structure is stable.",
        "15",
        ge=1,
        le=100_000,
    )
    finetune_epochs: Whole = _flag(
        15,
        "Training",
        "N",
        "Epochs after the removal; all rounds of an iterative schedule together.",
        "15",
        ge=0,
        le=100_000,
    )
    batch_size: Whole = _flag(128, "Training", "N", "Images in a training step.", "128", ge=2, le=1_000_000)
    learning_rate: Real = _flag(
        0.2, "Training", "RATE", "Peak learning rate of the dense training.", "0.1", gt=0, le=100
    )
    finetune_learning_rate: Real = _flag(
        0.05, "Training", "RATE", "Peak learning rate of the search and after the removal.", "0.02", gt=0, le=100
    )
    weight_decay: Real = _flag(5e-4, "Training", "X", "Weight decay, not on BatchNorm or biases.", "5e-4", ge=0, le=1)
    label_smoothing: Real = _flag(0.0, "Training", "X", "Label smoothing.", "0.1", ge=0, lt=1)
    validation: Fraction = _flag(
        0.1,
        "Training",
        "FRACTION|N",
        "Training images held out for every decision; the test set is read once, at the end.",
        "0.1",
        gt=0,
    )
    flip: bool | None = _flag(None, "Training", "", "Mirror training images. [default: yes, except for digits]", "true")
    crop_padding: Whole | None = _flag(
        None, "Training", "PIXELS", "Shift of training images. [default: 1/8 of the side]", "4", ge=0, le=64
    )
    cutout: Whole | None = _flag(
        None, "Training", "PIXELS", "Side of the square cut out of training images. [default: none]", "8", ge=0, le=512
    )

    schedule: Literal["one-shot", "iterative"] = _flag(
        "one-shot",
        "Pruning",
        "SCHEDULE",
        "Remove at once (one-shot), or in several rounds with training between (iterative).",
        "iterative",
    )
    rounds: Whole = _flag(3, "Pruning", "N", "Rounds of the iterative schedule.", "3", ge=1, le=100)
    scope: Literal["global", "local"] = _flag(
        "global",
        "Pruning",
        "SCOPE",
        "Compare channels across layers (global), or prune every layer alike (local).",
        "local",
    )
    min_channels: Whole | None = _flag(
        None, "Pruning", "N", "Channels that stay in every layer at least. [default: a tenth of them]", "8", ge=1
    )
    round_to: Whole = _flag(1, "Pruning", "N", "Keep multiples of this many channels.", "8", ge=1, le=1024)
    criterion: str | None = _flag(
        None,
        "Pruning",
        "NAME",
        "Another score, e.g. l1_norm, bn_scale or the control, random. [default: the method's own]",
        "l1_norm",
    )
    degree: Literal["weight", "activation", "hoyer"] = _flag(
        "weight",
        "Pruning",
        "DEGREE",
        "Sparsity of a channel (channel-sparsity): its small weights, its zero activations, or Hoyer's measure.",
        "activation",
    )
    threshold: Real = _flag(
        0.1, "Pruning", "T", "A weight is small below T times its layer's RMS (channel-sparsity, weight).", "0.1", ge=0
    )
    lam: Real = _flag(
        1.0, "Pruning", "LAMBDA", "Weight of the L2 term (channel-sparsity); 0 is the plain method.", "1.0", ge=0
    )
    norm: Annotated[Literal[1, 2], BeforeValidator(_as_number)] = _flag(
        2, "Pruning", "P", "Norm of the fused filter (layer-fusion): 1 or 2.", "1"
    )
    constant: bool = _flag(False, "Pruning", "", "Add the fused constant part (layer-fusion).", "true")

    seed: Whole = _flag(0, "Running", "N", "Seed of every random choice.", "0", ge=0, lt=2**31)
    device: str = _flag(
        "auto", "Running", "DEVICE", "cpu, cuda, cuda:1, or auto.", "cpu", pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$"
    )
    threads: Whole | None = _flag(
        None, "Running", "N", "Threads on the CPU. [default: torch's own choice]", "2", ge=1, le=1024
    )
    precision: Literal["auto", "float32", "bfloat16"] = _flag(
        "auto", "Running", "TYPE", "auto, float32 or bfloat16.", "float32"
    )
    skip_bad_images: bool = _flag(
        False, "Running", "", "Leave unreadable images out, and count them, instead of stopping.", "true"
    )
    cache_dir: Path | None = _flag(
        None, "Running", "FOLDER", "Where decoded data sets are kept. [default: the user's cache]", ".cache"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = [*_missing_budget(self), *_idle_options(self)]
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
        return {}

    def to_yaml(self) -> str:
        """Write the configuration as config.yaml, which `load_config` reads back equal."""
        from prunus.plain_yaml import dump_mapping

        return dump_mapping(self.model_dump(mode="json"))

    def differences(self, other: RunConfig) -> list[str]:
        """List what keeps a run of `other` from going on as this one: "epochs: 30 there, 20 here".

        Where and how fast it runs (MAY_CHANGE) does not count.
        """
        keys = [key for key in RunConfig.model_fields if key not in MAY_CHANGE]
        pairs = {key: (getattr(self, key), getattr(other, key)) for key in keys}
        return [f"{key}: {there} there, {here} here" for key, (here, there) in pairs.items() if here != there]


MAY_CHANGE = frozenset({"out", "threads", "device", "cache_dir"})  # the same run may go on elsewhere

# Options that say something to one method, schedule or criterion alone; to another they would silently do nothing.
_ONLY_FOR: dict[str, tuple[str, str]] = {
    "search_epochs": ("method", "layer-fusion"),
    "schedule": ("method", "channel-sparsity"),
    "rounds": ("schedule", "iterative"),
    "degree": ("criterion_name", "channel_sparsity"),
    "threshold": ("criterion_name", "channel_sparsity"),
    "lam": ("criterion_name", "channel_sparsity"),
    "norm": ("criterion_name", "fused_conv_bn"),
    "constant": ("criterion_name", "fused_conv_bn"),
}


def _missing_budget(config: RunConfig) -> list[str]:
    if config.budgets:
        return []
    return ["no budget is given: add one of --size 0.64MB, --macs 0.5, --params 0.4, --pruning-ratio 0.3"]


def _idle_options(config: RunConfig) -> list[str]:
    idle = []
    for key, (owner, wanted) in _ONLY_FOR.items():
        value, actual = getattr(config, key), getattr(config, owner)
        if value != RunConfig.model_fields[key].default and actual != wanted:
            owner_words = owner.removesuffix("_name")
            idle.append(
                f"{flag_name(key)} {value} does nothing here: "
                f"it is for {owner_words} {wanted}, and this is {owner_words} {actual}"
            )
    return idle


def load_config(path: Path | str | None = None, flags: Mapping[str, object] | None = None) -> RunConfig:
    """Build the configuration from a YAML file, then flags over it; a ConfigError lists all that is wrong at once."""
    values: dict[str, object] = {}
    if path is not None:
        from prunus.plain_yaml import read_mapping

        values = read_mapping(Path(path))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    origins = {key: str(path) for key in values} | dict.fromkeys(given, "")
    merged = values | given
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        # A union reports once for each of its types; the last, widest one speaks for the key.
        lines = {
            str(detail["loc"][:1]): explain(detail, RunConfig.model_fields, origins)
            for detail in error.errors(include_url=False)
        }
        bad = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    problems = [line for group in lines.values() for line in group]
    raise ConfigError(as_list(problems + _disagreements(merged, bad)))


def _disagreements(merged: Mapping[str, object], bad: set[str]) -> list[str]:
    """Check the options against each other although some are bad, by leaving those out: all errors at once."""
    if not bad:
        return []
    required = {"model": "resnet20", "data": "digits"}
    try:
        RunConfig.model_validate(required | {key: value for key, value in merged.items() if key not in bad})
    except ValidationError as error:
        lines = [
            line for detail in error.errors(include_url=False) for line in explain(detail, RunConfig.model_fields, {})
        ]
        budget_was_bad = bad & {"size", "macs", "params", "pruning_ratio"}
        return [line for line in lines if not (budget_was_bad and line.startswith("no budget"))]
    return []
