"""What axe-core finds wrong for people who do not see, or do not use a mouse."""

from __future__ import annotations

from typing import Any

import pytest


def accessibility_faults(page: Any) -> list[str]:
    """Return the serious faults of an open page, each with the first place where it is."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]} {fault['nodes'][0].get('failureSummary', '')[:300]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
