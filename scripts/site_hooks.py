"""What the site does beyond MkDocs: formulae become MathML, which browsers draw without a script or a font."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Write the formulae of a page, which arithmatex has marked, as MathML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[2] == "[" else "inline"
    return convert(html.unescape(formula[3]), display=display)
