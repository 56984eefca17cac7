"""A search by Optuna: its trials are the cells, and its journal lies in the sweep's folder."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

from prunus.config import judge
from prunus.errors import ConfigError
from prunus.sweep.cells import Job, SweepFolder, make_cell
from prunus.sweep.results import Row, read_rows
from prunus.sweep.space import OBJECTIVES, Range, SearchPlan
from prunus.sweep.states import State

_AGAIN = "again"  # attribute of a trial that stands for a cell that had failed before


class Search:
    """The trials so far, and those to come.

    A trial is asked for when a slot is free, so that it knows what is known by then. Those that a killed sweep left are
    open: their cells run, and they get their values. The folder's lock must be held.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, folder: SweepFolder, base: Mapping[str, Any], plan: SearchPlan) -> None:
        self._folder, self._base, self._plan = folder, dict(base), plan
        self._optuna = _optuna()
        self._distributions = {key: self._distribution(values) for key, values in plan.space.items()}
        self._study = self._open_study()
        self._cells: dict[str, Job] = {}
        self._open: dict[str, list[int]] = {}  # numbers of trials that wait for a cell
        self._told: set[str] = set()
        self._asked = 0
        state = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False):
            self._asked += _AGAIN not in trial.user_attrs
            cell = self._cell(trial.params)
            if cell is None:
                continue
            self._cells[cell.name] = cell
            if trial.state == state.COMPLETE:
                self._told.add(cell.name)
            elif not trial.state.is_finished():
                self._open.setdefault(cell.name, []).append(trial.number)

    @property
    def cells(self) -> tuple[Job, ...]:
        """The cells of all trials so far."""
        return tuple(self._cells.values())

    def more(self) -> Job | None:
        """Ask for another cell; None once there were enough."""
        while self._asked < self._plan.trials:
            self._asked += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Optuna, that a range is not a multiple of its step
                trial = self._study.ask(self._distributions)
            cell = self._cell(trial.params)
            if cell is None:  # settings that contradict each other in the middle of their ranges
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                continue
            known = cell.name in self._cells
            self._cells[cell.name] = cell
            self._open.setdefault(cell.name, []).append(trial.number)
            if not known:
                return cell
            if self._folder.is_done(cell):
                self.settled(cell, State(status="done"))
        return None

    def settled(self, cell: Job, state: State) -> None:
        """Tell Optuna what a cell came to."""
        trials = self._optuna.trial
        values = self._values(cell) if state.status == "done" else None
        for number in self._open.pop(cell.name, []):
            if values is None:
                self._study.tell(number, state=trials.TrialState.FAIL)
            else:
                self._study.tell(number, values)
                self._told.add(cell.name)
        if values is not None and cell.name not in self._told:  # it had failed, and its trial is closed
            self._told.add(cell.name)
            self._study.add_trial(
                trials.create_trial(
                    params=dict(cell.varied),
                    distributions=self._distributions,
                    values=values,
                    user_attrs={_AGAIN: True},
                )
            )

    def _cell(self, params: Mapping[str, Any]) -> Job | None:
        config, _ = judge(self._base | dict(params), {})
        return None if config is None else make_cell(config, params)

    def _values(self, cell: Job) -> list[float] | None:
        (row,) = read_rows(self._folder, [cell])
        values = [_value(row, objective) for objective in self._plan.objectives]
        return None if None in values else [float(value) for value in values if value is not None]

    def _distribution(self, values: tuple[Any, ...] | Range) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(values, Range):
            return kinds.CategoricalDistribution(values)
        if values.whole:
            return kinds.IntDistribution(int(values.low), int(values.high), values.log, int(values.step or 1))
        return kinds.FloatDistribution(float(values.low), float(values.high), values.log, values.step)

    def _open_study(self) -> Any:
        optuna, path = self._optuna, self._folder.study
        path.with_name(f"{path.name}.lock").unlink(
            missing_ok=True
        )  # of a sweep that was killed: we hold the folder's lock
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        said = {"base": self._base, "space": {key: repr(value) for key, value in self._plan.space.items()}}
        # Another question is another study; more trials of the same one are not.
        text = json.dumps(said | {"objectives": self._plan.objectives}, sort_keys=True, default=str)
        study = optuna.create_study(
            storage=storage,
            study_name=hashlib.sha256(text.encode()).hexdigest()[:8],
            directions=[OBJECTIVES[name] for name in self._plan.objectives],
            load_if_exists=True,
        )
        # A sampler that begins anew with the same seed would ask for the same cells again.
        seed = self._plan.seed + len(study.get_trials(deepcopy=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar was an experiment in Optuna 4
            study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return study


def _value(row: Row, objective: str) -> float | None:
    value: float | None = row.held_out_accuracy if objective == "accuracy" else getattr(row, objective)
    return value


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs Optuna, which is not installed: type pip install 'prunus[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
