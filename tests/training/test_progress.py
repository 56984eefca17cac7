from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_an_epoch_where_nobody_watches(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    _, history = train(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 4
    assert lines[3].startswith(f"dense 4/4: loss {history[3]['loss']:.3f}, validation accuracy ")
    assert f"{history[3]['val_accuracy']:.2%}" in lines[3]


def test_a_bar_on_a_terminal(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    train(progress=True)
    shown = terminal.getvalue()
    assert "dense 4/4" in shown
    assert "images/s · val " in shown
    assert "0:00:00" in shown


def test_silence(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train(progress=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
