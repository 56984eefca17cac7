"""What an exported file says of itself: enough to use it without the code that trained the network."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

import prunus
from prunus.deploy.header import Bits, Count, Finite, Text
from prunus.errors import FileFormatError
from prunus.files import atomic_write_text, file_sha256, read_bytes

INFO_VERSION = 1
INFO_KEY = "prunus"
"""The name under which formats with room for it hold the description."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["float32", "float16 weights", "int8"]


class FileInfo(BaseModel):
    """The description of an exported network.

    The network takes float32 (N, C, H, W), ``(pixel / 255 - mean) / std`` by channel, and returns logits (N, classes).
    `batch` is the N that the file is fixed to, None where any will do. `plan` has a string for every channel group,
    "1" for a channel that stayed. `versions` are those of the packages that wrote the file. `macs` is of one image.
    `digests` are the SHA-256 of the files beside a side file, by name; empty where the description lies inside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    info_version: int = INFO_VERSION
    prunus_version: Text = Field(default_factory=lambda: prunus.__version__)
    versions: dict[Text, Text] = {}
    format: Text
    model: Text | None = None
    input_shape: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]
    batch: Count | None = None
    classes: tuple[Text, ...] = ()
    mean: tuple[Finite, ...] = ()
    std: tuple[Finite, ...] = ()
    plan: dict[Text, Bits] | None = None
    params: int | None = None
    macs: int | None = None
    batchnorm_folded: bool = False
    precision: Precision = "float32"
    opset: int | None = None
    digests: dict[Text, Digest] = {}

    def encode(self) -> str:
        """Write the description as one line of JSON."""
        return self.model_dump_json()


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def parse_info(text: str | bytes, source: str | Path) -> FileInfo:
    """Read and check a description; `source` names the file in a FileFormatError."""
    try:
        info = FileInfo.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "description"
        raise FileFormatError(f"the file {source} has a broken description: {where}: {first['msg']}") from error
    if info.info_version != INFO_VERSION:
        raise FileFormatError(
            f"the file {source} has a description of version {info.info_version}, and this Prunus reads "
            f"{INFO_VERSION}: install the version that wrote it (prunus {info.prunus_version})"
        )
    return info


def write_side_file(info: FileInfo, side: Path, described: tuple[Path, ...]) -> None:
    """Write the description of a format without room for it, with the digests of the files that it describes."""
    digests = {file.name: file_sha256(file) for file in described}
    atomic_write_text(side, info.model_copy(update={"digests": digests}).model_dump_json(indent=2) + "\n")


def read_side_file(side: Path, described: tuple[Path, ...]) -> FileInfo:
    """Read the description beside exported files, and check that they are the files that it describes.

    Raises:
        FileFormatError: the side file or a described one is missing, or was changed since.
    """
    info = parse_info(read_bytes(side, "description"), side)
    for file in described:
        if not file.is_file():
            raise FileFormatError(f"no file {file}: {side.name} describes it, and it is not there; export it again")
        if info.digests.get(file.name) != file_sha256(file):
            raise FileFormatError(
                f"the file {file} is cut short or damaged: its content differs from the checksum in {side.name}; "
                "export it again"
            )
    return info
