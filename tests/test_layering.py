"""Arrows point one way: every import in the source is one that the architecture allows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunus

SOURCE = Path(prunus.__file__).parent

# What every part may import beside itself. `errors` and the file helpers lie at the bottom; `cli` at the top.
BASE = {"errors", "files", "collector", "limits", "stopping"}
TRACED = BASE | {"graph"}
COSTED = TRACED | {"cost"}
SCORED = COSTED | {"criteria", "budget"}
PLANNED = SCORED | {"plan", "allocation"}
CUT = PLANNED | {"surgery", "verify"}
PRUNED = CUT | {"recovery", "api"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "collector": set(),
    "stopping": {"errors"},
    "limits": {"errors"},
    "files": {"errors", "limits"},
    "config": {"errors", "budget"},
    "budget": COSTED,
    "graph": BASE,
    "cost": TRACED,
    "criteria": COSTED | {"budget"},  # a score may be one per cost, of what the budget limits
    "plan": SCORED,
    "ladders": SCORED,  # what the allocation climbs down
    "allocation": SCORED | {"plan", "ladders"},
    "surgery": PLANNED,
    "verify": PLANNED,
    "migration": PLANNED | {"surgery"},
    "recovery": CUT,  # what is repaired after a removal, before any training
    "width_search": CUT | {"recovery", "training"},  # looks at what is left of the accuracy
    "branches": CUT | {"recovery", "ladders"},  # what goes as a whole, before channels are chosen
    "api": CUT | {"recovery", "branches"},
    "models": BASE,
    "checking": PRUNED | {"models"},  # prunes networks by name, one row each
    "inspection": COSTED | {"checking"},  # rows
    "inspecting": PRUNED | {"models", "checking", "inspection"},  # what a trace says, with costs
    "doctor": {"errors", "deploy", "data"},  # looks at what is installed, and at these for their folders and names
    "data": BASE,
    "training": BASE,  # knows nothing of pruning
    "report": BASE,  # reads files only
    "deploy": CUT | {"models"},
    "methods": PRUNED | {"recovery", "training", "ladders", "migration"},  # removes while it trains
    "pipeline": PRUNED
    | {
        "branches",
        "config",
        "models",
        "data",
        "training",
        "report",
        "deploy",
        "methods",
        "width_search",
        "inspecting",
        "inspection",
    },
    "sweep": BASE
    | {"config", "data", "report", "models", "criteria"},  # starts runs as processes, and reads their folders
    "cli": BASE | {"config", "pipeline", "report", "checking", "inspecting", "inspection", "doctor", "models", "sweep"},
    "__main__": {"cli"},
}


def part_of(module: str) -> str:
    """Name the part that a dotted module belongs to: "prunus.graph.trace" → "graph"."""
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """List the modules of prunus that a file imports anywhere, also inside functions; not those for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "prunus")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if (node.module or "").split(".")[0] == "prunus":
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in modules else str(node.module)
        yield from imports(node, modules)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("prunus", *(part for part in parts if part != "__init__")))


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    part = part_of(module)
    tree = ast.parse(FILES[module].read_text("utf-8"))
    used = {part_of(name) for name in imports(tree, set(FILES))} - {part, ""}
    allowed = ALLOWED[part] if part else set()
    assert used <= allowed, f"{module} may not import {sorted(used - allowed)}"


def test_the_allowed_arrows_make_no_circle() -> None:
    done: set[str] = set()
    left = dict(ALLOWED)
    while left:
        free = [part for part, below in left.items() if below <= done]
        assert free, f"these import each other: {sorted(left)}"
        done.update(free)
        for part in free:
            del left[part]


def test_an_import_the_wrong_way_is_seen() -> None:
    tree = ast.parse(
        "def f():\n    from prunus.surgery import remove\nimport prunus.plan as p\nfrom prunus import verify"
    )
    assert {part_of(name) for name in imports(tree, {"prunus.verify"})} == {"surgery", "plan", "verify"}


@pytest.mark.parametrize("module", FILES)
def test_nothing_is_pickled_or_evaluated(module: str) -> None:
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert (
                not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(names)
                or module == "prunus.data.plain_pickle"
            )
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"eval", "exec", "torch.load", "pickle.load", "pickle.loads"}
