"""The configuration of a run: its fields, each described once for the file, the flags and the messages, agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from prunus.config.fields import Limit
from prunus.config.idle import idle_options
from prunus.config.int8_fields import Int8Fields
from prunus.config.messages import BUDGET_ERROR
from prunus.config.plain_yaml import dump_mapping
from prunus.config.pruning_fields import PruningFields
from prunus.config.recipes import with_recipe
from prunus.config.running_fields import RunningFields, Runtime
from prunus.config.training_fields import TrainingFields
from prunus.config.what_fields import BudgetFields, WhatFields
from prunus.errors import ConfigError


# The fields stand in the order of the bases from the last to the first.
class RunConfig(RunningFields, Int8Fields, PruningFields, TrainingFields, BudgetFields, WhatFields):
    """Everything that decides a run of `prunus compress`; written as config.yaml into its run folder.

    Budgets (`params`, `macs`, `size`, `latency`, `pruning_ratio`) stay as typed, numbers as numbers; all that are given
    must hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _with_its_recipe(cls, values: Any) -> Any:
        return with_recipe(values) if isinstance(values, dict) else values

    @field_validator("size", "macs", "params", "latency", "pruning_ratio")
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
        problems = [*_missing_budget(self), *idle_options(self), *_too_long_a_warmup(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def times_layers(self) -> bool:
        """Whether layers are timed: for a budget of latency, to rank channels by it, or for what widths are best."""
        return self.latency is not None or self.normalize == "latency" or self.round_to == "auto"

    @property
    def latency_runtime(self) -> Runtime:
        """Where latency is measured: as asked for, else ONNX Runtime where layers are timed, and PyTorch where not."""
        return self.runtime or ("ort" if self.times_layers else "torch")

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
        """The budgets that were given, as typed: a subset of params, macs, size, latency, pruning_ratio."""
        given = {key: getattr(self, key) for key in ("size", "macs", "params", "latency", "pruning_ratio")}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def criterion_name(self) -> str:
        """The key of CRITERIA that scores the channels."""
        return self.criterion or _OWN_CRITERION[self.method]

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
        """The steps of `recover`, in their order; none where the small network gets new weights."""
        return () if self.recover == "none" or self.reinitialize else tuple(self.recover.split(","))

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


_OWN_CRITERION = {
    "refit-error": "refit_error",
    "channel-sparsity": "channel_sparsity",
    "layer-fusion": "delivered_energy",
}

# The same run may go on elsewhere.
MAY_CHANGE = frozenset({"out", "threads", "device", "cache_dir", "image_memory", "compile", "tracker"})


def _missing_budget(config: RunConfig) -> list[str]:
    if config.budgets:
        return []
    return [
        "no budget is given: add one of --size 0.64MB, --macs 0.5, --params 0.4, --latency 0.5, --pruning-ratio 0.3"
    ]


def _too_long_a_warmup(config: RunConfig) -> list[str]:
    warmup = config.warmup_epochs
    if warmup is None or config.from_scratch or warmup < config.epochs:
        return []
    return [f"--warmup-epochs {warmup:g} does not end within --epochs {config.epochs}: give fewer"]
