"""`prunus bench`: how long networks take on this computer, dense beside pruned."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.talk import JsonFlag, Quiet, Talk, Verbose, run_and_show


def bench(
    sources: Annotated[list[str], typer.Argument(metavar="RUN|FILE…", help="A run folder, or exported files.")],
    runtime: Annotated[
        str | None,
        typer.Option(
            help="Of a run, with commas: ort, executorch, ncnn, litert, torch. [default: ort]", metavar="RUNTIMES"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.", metavar="N", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="Images a call.", metavar="N", min=1)] = 1,
    runs: Annotated[int, typer.Option(help="Timed calls of each file.", metavar="N", min=1)] = 100,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", metavar="", help="Measure the peak of memory, in further processes.")
    ] = True,
    int8: Annotated[
        bool, typer.Option("--int8", metavar="", help="Of a run, time its networks with 8-bit integers as well.")
    ] = False,
    json: JsonFlag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time networks on this computer, taking turns in one process: median, p10 and p90, memory and size.

    [cyan]prunus bench runs/a --runtime ort,ncnn[/cyan]

    [cyan]prunus bench dense.onnx small.onnx small.ncnn.param --threads 2[/cyan]

    The speed-up over the first file of a runtime stands beside the reduction of its MACs: removed MACs do not always
    become time.
    """

    def run(talk: Talk) -> None:
        from prunus.pipeline.benching import bench as run_bench
        from prunus.pipeline.benching import bench_table

        wanted = [name.strip() for name in (runtime or "").split(",") if name.strip()]
        rows = run_bench(
            sources,
            talk.messages,
            runtimes=wanted,
            threads=threads,
            batch=batch,
            runs=runs,
            memory=memory,
            int8=int8,
        )
        if json:
            from dataclasses import asdict
            from json import dumps

            talk.data(dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        else:
            talk.out.print(bench_table(rows))

    run_and_show(run, stopped="stopped", quiet=quiet, verbose=verbose)
