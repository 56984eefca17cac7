"""details.json of a run, checked: the network with its widths and scores, and what changed on the test images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from prunus.errors import FileFormatError
from prunus.files import read_json

_PLAIN = ConfigDict(frozen=True)


class Node(BaseModel):
    """One input, layer, join or cut; `inputs` are earlier nodes, `groups` pairs of a group's number and channels."""

    model_config = _PLAIN

    kind: Literal["input", "layer", "join", "cut"]
    name: str
    op: str
    inputs: tuple[int, ...]
    through: tuple[str, ...]
    width: int
    after: int
    groups: tuple[tuple[int, int], ...]
    macs: int
    macs_share: float


class Coupling(BaseModel):
    """An operation that unites channels of several paths, in how many places, and the first of them."""

    model_config = _PLAIN

    op: str
    count: int
    first: str


class Group(BaseModel):
    """One channel group: the indices that stay, and the score of every channel where it was kept."""

    model_config = _PLAIN

    name: str
    channels: int
    constraint: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    passes: tuple[str, ...]
    couplings: tuple[Coupling, ...]
    params_share: float
    macs_share: float
    keep: tuple[int, ...]
    scores: tuple[float, ...] | None = None


class Frozen(BaseModel):
    """Why channels along `tensor` stay whole."""

    model_config = _PLAIN

    tensor: str
    count: int
    channels: int
    op: str
    where: str
    reason: str


class Shown(BaseModel):
    """A test image that the networks take for different classes, as a PNG in base64."""

    model_config = _PLAIN

    kind: str
    number: int
    label: int
    dense: int
    pruned: int
    dense_confidence: float
    pruned_confidence: float
    png: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/=]+$", max_length=200_000)]


class Outcome(BaseModel):
    """What the networks, "dense" and "pruned" or only the latter, made of the test images.

    `images` counts those of every class, `right` those that a network knew; `confusion` has a row for every true class,
    and is empty where there are too many classes. `changed` counts the images that are taken for something else.
    """

    model_config = _PLAIN

    classes: tuple[str, ...]
    images: tuple[int, ...]
    right: dict[str, tuple[int, ...]]
    confusion: dict[str, tuple[tuple[int, ...], ...]]
    changed: dict[str, int] = {}
    shown: tuple[Shown, ...] = ()


class Details(BaseModel):
    """The whole file."""

    model_config = _PLAIN

    format_version: Literal[1]
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    test: Outcome


def read_details(path: Path) -> Details | None:
    """Read a details.json, None where there is none; FileFormatError names what does not fit."""
    if not path.exists():
        return None
    try:
        details = Details.model_validate(read_json(path, "details"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise FileFormatError(f"the details {path} do not fit: {place}: {first['msg']}; {_WITHOUT}") from None
    wrong = _misfit(details)
    if wrong:
        raise FileFormatError(f"the details {path} do not fit: {wrong}; {_WITHOUT}")
    return details


_WITHOUT = "delete the file for a page without them"


def _misfit(details: Details) -> str:
    """Say which number points at something that is not there, or which list is of the wrong length."""
    for number, node in enumerate(details.nodes):
        if not all(0 <= source < number for source in node.inputs):
            return f"node {number} reads one that is not before it"
        if not all(0 <= group < len(details.groups) for group, _ in node.groups):
            return f"node {number} is of a group that is not there"
    for group in details.groups:
        if group.scores is not None and len(group.scores) != group.channels:
            return f"group {group.name} has {len(group.scores)} scores and {group.channels} channels"
        if not all(0 <= channel < group.channels for channel in group.keep):
            return f"group {group.name} keeps a channel that it has not"
    test, classes = details.test, len(details.test.classes)
    lists = [test.images, *test.right.values(), *(row for rows in test.confusion.values() for row in rows)]
    if any(len(values) != classes for values in lists) or any(len(m) != classes for m in test.confusion.values()):
        return f"test counts other than {classes} classes"
    if not all(0 <= number < classes for image in test.shown for number in (image.label, image.dense, image.pruned)):
        return "an image is of a class that is not there"
    return ""
