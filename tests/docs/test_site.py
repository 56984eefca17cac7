"""The site is built without a warning, its links lead somewhere, and it loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("mkdocs", reason="the site needs pip install 'prunus[docs]'")
pytestmark = pytest.mark.slow


class Seen(HTMLParser):
    """Collects what a page points to, what it loads, and the places that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = {""}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places.update(value for name in ("id", "name") if (value := values.get(name)))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("img", "script", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and "href" in values and values.get("rel") != "canonical":
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def seen(site: Path) -> dict[Path, Seen]:
    found = {}
    for page in sorted(site.rglob("*.html")):
        found[page] = Seen()
        found[page].feed(page.read_text("utf-8"))
    return found


def test_every_link_and_anchor_leads_somewhere(site: Path, seen: dict[Path, Seen]) -> None:
    broken, checked = [], 0
    for page, there in seen.items():
        for link in there.links + there.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            checked += 1
            known = target.suffix != ".html" or not parts.fragment or target not in seen
            if not target.is_file() or not (known or unquote(parts.fragment) in seen[target].places):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert checked > 500
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path, seen: dict[Path, Seen]) -> None:
    outside = {link for there in seen.values() for link in there.loaded if urlsplit(link).netloc}
    assert outside == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?https?:|@import\s+['\"]?https?:", sheet.read_text("utf-8")), sheet


def test_links_to_the_web_are_secure_and_whole(seen: dict[Path, Seen]) -> None:
    outside = {link for there in seen.values() for link in there.links if urlsplit(link).netloc}
    assert outside
    assert [link for link in outside if urlsplit(link).scheme != "https" or " " in link] == []
