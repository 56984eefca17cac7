"""What the panel beside a drawn network says of a node or a group, for an inspection and for a run alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prunus.report import numbers

_WHAT = {"input": "input of the network", "cut": "cut into parts"}


class PanelNode(Protocol):
    """A node of the data flow."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def through(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def groups(self) -> tuple[tuple[int, int], ...]: ...  # noqa: D102
    @property
    def macs(self) -> int: ...  # noqa: D102
    @property
    def macs_share(self) -> float: ...  # noqa: D102


class PanelFreeze(Protocol):
    """Why some channels stay whole."""

    @property
    def tensor(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def where(self) -> str: ...  # noqa: D102


def node_panel(
    node: PanelNode,
    nodes: Sequence[PanelNode],
    group_names: Sequence[str],
    frozen: Sequence[PanelFreeze],
    *,
    channels: str,
    macs_label: str,
    always: int,
) -> dict[str, Any]:
    """Return what the panel shows once a node is chosen, and the text that a search looks through.

    Args:
        node: what was chosen.
        nodes: all nodes, which `node.inputs` number.
        group_names: names of all groups, which `node.groups` number.
        frozen: what stays whole in the network, and why.
        channels: its width, in words.
        macs_label: what its MACs are called.
        always: how many of its channels stay whatever is pruned.
    """
    facts = [["channels", channels]]
    if node.kind == "layer":
        facts.append([macs_label, f"{numbers.count(node.macs)} ({percent(node.macs_share)})"])
    if node.through:
        facts.append(["then", ", ".join(node.through)])
    facts.append(["reads", ", ".join(nodes[source].name or "the network" for source in node.inputs)])
    names = [group_names[number] for number, _ in node.groups]
    return {
        "name": node.name or "the network",
        "what": _WHAT.get(node.kind, node.op),
        "facts": facts,
        "groups": node.groups,
        "whole": _whole(node, always, frozen),
        "text": " ".join([node.name, node.op, *node.through, *names]).lower(),
    }


def _whole(node: PanelNode, always: int, frozen: Sequence[PanelFreeze]) -> str:
    """Say why channels of a node's result stay, as far as a reason names it."""
    if node.kind == "input":
        return "The channels of an input are given."
    if always <= 0:
        return ""
    for row in frozen:
        if row.tensor.rpartition(".")[0] == node.name:
            by = ", ".join(part for part in (row.op, row.where) if part)
            return f"{row.channels} channels: {row.reason}" + (f" ({by})" if by else "")
    return f"{always} of its {node.width} channels always stay."


def coupled(op: str, count: int, first: str) -> str:
    """Say which operation makes channels of several paths one."""
    return f"{op} in {first or 'the network'}" + (f" and {count - 1} more" if count > 1 else "")


def touched(macs_share: float, params_share: float) -> str:
    """Say what a group touches."""
    return f"{percent(macs_share)} of the MACs, {percent(params_share)} of the parameters"


def percent(share: float) -> str:
    """Write a share with one digit."""
    return f"{100 * share:.1f}\u00a0%"
