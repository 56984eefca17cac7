"""The header of a model file: what the network is, in JSON that is checked before anything is built from it."""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from prunus.errors import FileFormatError
from prunus.plan import PruningPlan

FORMAT_VERSION = 1
METADATA_KEY = "prunus"

_LARGEST = 1 << 24  # of any size in the file; a hostile one cannot make us allocate by it

Count = Annotated[int, Field(ge=1, le=_LARGEST)]
Size = Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
Text = Annotated[str, Field(max_length=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Bits = Annotated[str, Field(pattern=r"^[01]*$")]


class ModelHeader(BaseModel):
    """What a model file says about its tensors.

    `model` is a name of the zoo, or None for a network of the user's own. `attributes` are the sizes that modules keep
    as Python numbers, by module path. `plan` has one string per channel group, "1" for a channel that stayed: of one
    length whatever was pruned, so that the size of a file is known before its plan is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: int
    prunus_version: Text
    model: Text | None
    num_classes: Count | None
    in_channels: Count | None
    input_shape: tuple[Count, ...] | None
    classes: tuple[Text, ...]
    mean: tuple[Finite, ...]
    std: tuple[Finite, ...]
    attributes: dict[str, dict[str, Size | tuple[Size, ...] | dict[Text, Size]]]
    plan: dict[str, Bits] | None
    extra: dict[str, str | int | Finite | bool | None]

    def kept_channels(self) -> dict[str, tuple[int, ...]]:
        """Return the indices of the channels that stayed, by channel group; empty for a network that is whole."""
        return {
            name: tuple(index for index, bit in enumerate(bits) if bit == "1")
            for name, bits in (self.plan or {}).items()
        }


def encode_plan(plan: PruningPlan | None) -> dict[str, str] | None:
    """Write a plan's kept channels as one string of 0 and 1 per group."""
    if plan is None:
        return None
    strings = {}
    for group in plan.groups:
        kept = set(group.keep)
        strings[group.name] = "".join("1" if index in kept else "0" for index in range(group.size))
    return strings


def parse_header(text: str, source: str) -> ModelHeader:
    """Read and check a header; `source` names the file in a FileFormatError."""
    try:
        header = ModelHeader.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        raise FileFormatError(f"the model file {source} has a broken header: {where}: {first['msg']}") from error
    if header.format_version != FORMAT_VERSION:
        raise FileFormatError(
            f"the model file {source} has format version {header.format_version}, and this Prunus reads "
            f"{FORMAT_VERSION}: install the version that wrote it (prunus {header.prunus_version})"
        )
    return header
