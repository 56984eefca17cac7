"""Pages as the tests see them: fenced blocks in their order, each with what the comment above it asks for.

A comment right above a block, which readers of the page do not see, may say:

    <!-- run -->                 the commands of this shell block are run, in the folder of the page
    <!-- needs: timm, cuda -->   the page stops here, skipped, where one of these is really missing
    <!-- not run: REASON -->     this block is only parsed
    <!-- file: NAME -->          this block is the content of a file, which is written into the folder of the page
    <!-- first: CODE -->         Python that runs before the block: what the text around it takes for granted
    <!-- command: NAME -->       a command that .ci/run takes from the page and runs
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MARKS = frozenset({"run", "needs", "not run", "file", "first", "command"})

_FENCE = re.compile(
    r"(?P<comments>(?:^[ ]*<!--(?:(?!-->).)*-->[ ]*\n\n?)*)"
    r"^(?P<indent>[ ]*)```(?P<language>[^\n]*)\n(?P<code>.*?)^[ ]*```[ ]*$",
    re.DOTALL | re.MULTILINE,
)
_COMMENT = re.compile(r"<!--\s*(?P<mark>[a-z ]+?)\s*(?::\s*(?P<value>.*?))?\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: where it begins (line of its first code), its language, and its marks."""

    page: Path
    line: int
    language: str
    code: str
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        marks = {comment["mark"]: comment["value"] or "" for comment in _COMMENT.finditer(match["comments"])}
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(page, line, match["language"].strip(), code, marks))
    return found


def pages() -> list[Path]:
    """Return every page of the site, and what stands beside it in the repository."""
    return [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "models" / "README.md"]


def commands_of(block: Block) -> list[str]:
    """Return the commands of a shell block: without comments, prompts and line ends that are escaped."""
    joined = re.sub(r"\\\n\s*", " ", block.code)
    lines = [line for part in joined.splitlines() for line in part.split("&&")]
    lines = [re.sub(r"^\$ ", "", line.strip()) for line in lines]
    return [line for line in lines if line and not line.startswith("#")]


def inline_of(page: Path) -> list[str]:
    """Return what stands in a page's running text as code."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
