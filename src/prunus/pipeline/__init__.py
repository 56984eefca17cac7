"""The main job: train → (train sparsely) → find redundant channels → remove → verify → fine-tune → (8 bits) → report.

Every stage leaves its output file, whole or not at all, so the same command goes on where the last one stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from rich.console import Console

from prunus.config import RunConfig
from prunus.deploy import load
from prunus.errors import FileFormatError
from prunus.limits import said_in_words
from prunus.pipeline.dense import obtain_dense
from prunus.pipeline.environment import describe_environment
from prunus.pipeline.finish import obtain_finetuned, write_summary
from prunus.pipeline.following import follow, leading
from prunus.pipeline.int8 import obtain_int8, rehearse_int8
from prunus.pipeline.run import choose_device, prepare
from prunus.pipeline.run_folder import RunFolder, open_run
from prunus.pipeline.search import obtain_removed, rehearse
from prunus.pipeline.sparse import obtain_sparse
from prunus.pipeline.timing import rehearse_latency
from prunus.pipeline.tracking import Track, open_tracker
from prunus.report import write_report
from prunus.stopping import Stopping
from prunus.training.team import Team, join_team

__all__ = ["DEMO", "RunFolder", "compress", "demo"]

DEMO = {
    "model": "resnet8",
    "data": "digits",
    "size": "0.08MB",
    "epochs": 30,
    "finetune_epochs": 30,
    "batch_size": 64,
    "threads": 1,  # for 8×8 images a second one costs more than it brings, and very much more on a busy machine
}
"""What `prunus demo` is told: a quarter of the bytes, in about 20 s."""


def compress(
    config: RunConfig,
    console: Console | None = None,
    *,
    fresh: bool = False,
    max_minutes: float | None = None,
    dense_only: bool = False,
) -> Path:
    """Make a network small as `config` says, going on where an earlier call stopped; return the run folder.

    Started several times over by `torchrun` or `accelerate launch`, the processes train together: rank 0 does what is
    said here, and the others follow it.

    Args:
        config: the whole run.
        console: where progress in words goes; by default the terminal.
        fresh: delete what an earlier run left in the folder, and start over.
        max_minutes: stop at a checkpoint after so long, above 0; a call gets at least one step further.
        dense_only: stop once the dense network is trained; the same call without this goes on.

    Raises:
        Stopped: the time is over, or SIGINT or SIGTERM came; the same call goes on.
        RunError: the folder is in use, or belongs to a run with other settings.
        BudgetError: the budget cannot be reached; said before any training.
        VerificationError: the removal went wrong; the network is not trained on.
        RunError: memory or disk ran out; what was finished before, checkpoints included, is kept.
        PrunusError: whatever else a user can cause, with what to do about it.
    """
    console = console or Console()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    team = join_team(cpu=config.device == "cpu")
    device = team.device if team.size > 1 else choose_device(config.device)
    if not team.leads:
        follow(config, team, device)
        return config.run_dir
    with (
        leading(team),
        Stopping(max_minutes) as stopping,
        said_in_words(lambda: _smaller(config)),
        open_run(config, describe_environment(device), fresh=fresh) as folder,
    ):
        if folder.summary.exists():
            console.print(f"{folder.path} is finished; type the command with --fresh to start over", highlight=False)
        else:
            if team.size > 1:
                stopping.expect_signals_twice()
            with open_tracker(config, folder) as track:
                _carry_out(config, folder, device, console, stopping, team, track, dense_only=dense_only)
        if dense_only and not folder.summary.exists():
            return folder.path
        if not folder.report.exists():
            write_report(folder.path)
        folder.tidy()
    return folder.path


def demo(out: Path | str, console: Console | None = None, *, seed: int = 0, fresh: bool = False) -> Path:
    """Run `compress` on the embedded digits with a small network and a size budget; return the run folder."""
    return compress(RunConfig.model_validate(DEMO | {"out": out, "seed": seed}), console, fresh=fresh)


def _carry_out(
    config: RunConfig,
    folder: RunFolder,
    device: torch.device,
    console: Console,
    stopping: Stopping,
    team: Team,
    track: Track,
    *,
    dense_only: bool,
) -> None:
    run = dataclasses.replace(prepare(config, folder, device, console, stopping, team), track=track)
    if team.size > 1:
        run.say(f"processes  {team.size} train together; this one, rank 0, does all else")
        team.tell(True)
    if not folder.dense.exists():
        rehearse(run)
        rehearse_latency(run)
        if config.int8:
            rehearse_int8(run)
    try:
        dense = obtain_dense(run)
        if dense_only:
            return
        start = run.build() if config.from_scratch else obtain_sparse(run, dense)
        small = obtain_removed(run, start)
        small = obtain_finetuned(run, small)
        if config.int8:
            obtain_int8(run, small)
        trained = load(folder.dense) if folder.dense.exists() else None  # as it was before a search trained on
        write_summary(run, trained, small)
    except FileFormatError as error:
        raise _with_a_way_on(error, folder) from error


def _smaller(config: RunConfig) -> str:
    """Say what needs less memory, and how to keep what is finished."""
    folder = RunFolder(config.run_dir)
    keep = f" --checkpoint {folder.dense}" if folder.dense.exists() else ""
    return (
        f"What was finished is kept in {folder.path}; the same command goes on there once memory is free. Smaller "
        f"batches need less: --batch-size {max(1, config.batch_size // 2)} --out ANOTHER{keep}"
    )


def _with_a_way_on(error: FileFormatError, folder: RunFolder) -> FileFormatError:
    """Say what to type where a file that an earlier stage left in the run folder is damaged."""
    text = str(error)
    if str(folder.path) not in text or "elete" in text:
        return error
    start = "to start over, type the command with --fresh"
    if str(folder.dense) in text or str(folder.metrics) in text:
        return FileFormatError(f"{text}. It cannot be mended: {start}")
    stages = f"delete {folder.plan}, {folder.model} and {folder.checkpoints}"
    return FileFormatError(f"{text}. To do again what comes after the dense training, {stages}; {start}")
