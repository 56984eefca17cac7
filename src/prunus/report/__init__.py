"""Run folders, read: a page for the browser and a table for the terminal. Nothing here trains or prunes."""

from __future__ import annotations

from prunus.report.folder import Figures, RunFolder, Summary, read_run, read_summary
from prunus.report.page import write_report
from prunus.report.terminal import print_summary

__all__ = ["Figures", "RunFolder", "Summary", "print_summary", "read_run", "read_summary", "write_report"]
