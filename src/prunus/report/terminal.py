"""The end of a run in the terminal: the dense network beside the pruned one, and what was written."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from prunus.report.comparison import compare, int8_text
from prunus.report.folder import Summary, read_run

# In the order in which a user wants them; only those that are there are shown.
_WRITTEN = (
    ("model.safetensors", "the small network: prunus.load() gives it back"),
    ("model.int8.onnx", "the small network with 8-bit integers"),
    ("dense.safetensors", "the network before"),
    ("options.json", "the options that were tried, best first"),
    ("plan.json", "which channels stayed"),
    ("verification.json", "the proof that the removal was right"),
    ("report.html", "the page to look at"),
)


def print_summary(run_dir: Path | str, console: Console) -> None:
    """Print a run folder's table and the paths of its files."""
    run = read_run(run_dir)
    console.print(summary_table(run.summary))
    if run.summary.int8:
        console.print(f"  {int8_text(run.summary)}", markup=False, highlight=False, soft_wrap=True)
    for name, meaning in _WRITTEN:
        if (run.path / name).exists():
            console.print(f"  {run.path / name}", style="bold", end="", markup=False, highlight=False, soft_wrap=True)
            console.print(f"  {meaning}", markup=False, highlight=False)


def summary_table(summary: Summary) -> Table:
    """Build the table: one line a quantity, dense, pruned, and what it gained."""
    title = f"{summary.model} on {summary.data} · {summary.method} · {summary.budget_text}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("pruned", justify="right", style="bold")
    table.add_column("", justify="right")
    for row in compare(summary):
        table.add_row(row.quantity, row.dense, row.pruned, row.gain)
    return table
