"""The progress bar: on stderr, and only when something takes long."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.samples import folder_files, write_tar

from prunus.data import load_data
from prunus.data import progress as progress_module


@pytest.mark.parametrize(("patience", "progress", "drawn"), [(-1, True, True), (-1, False, False), (60, True, False)])
def test_a_bar_is_drawn_when_it_takes_long(
    patience: float,
    progress: bool,
    drawn: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress_module, "PATIENCE_S", patience)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were a terminal
    load_data(write_tar(tmp_path / "a.tar", folder_files()), cache_dir=tmp_path / "cache", progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("Reading a.tar" in captured.err) == drawn
