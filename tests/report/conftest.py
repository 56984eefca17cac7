"""A headless Chromium for the pages, and a look at each that fails on whatever a page should not do."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunus import pipeline
from prunus.config import RunConfig

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on the digits, to be read only; its page may be written again."""
    settings = {"model": "resnet8", "data": "digits", "macs": 0.3, "epochs": 2, "finetune_epochs": 0, "threads": 1}
    config = RunConfig.model_validate(settings | {"device": "cpu", "out": tmp_path_factory.mktemp("run") / "a"})
    return pipeline.compress(config, Console(file=io.StringIO()))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The Chromium on the PATH, driven by Playwright; skips where one of them is not there."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("looks at the page in Chromium, which is not on the PATH")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """Open files; afterwards nothing may have been complained of, and nothing asked for beside the files."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts: list[Any] = []

    def open_file(path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)  # a busy machine draws slowly
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == []
