"""Jobs on a Ray cluster: one actor a slot, each of which starts the same process as on one machine."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import Any, Self

from prunus.errors import ConfigError
from prunus.sweep.child import Child, Outcome, Task
from prunus.sweep.spec import RayOptions

_LOOK_AGAIN = 0.1  # seconds
_GRACE = 15.0  # seconds for processes that were asked to end at once
_OWN_MEMORY = 100_000_000  # bytes of Ray's object store where the cluster is our own: only outcomes go through it


class Slot:
    """The actor: `run` waits for a process, and `stop`, in another thread, asks that process to end."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._stops = 0

    def run(self, task: Task) -> Outcome:
        """Start a task and wait for its end."""
        if self._stops:
            return Outcome(143)
        self._child = Child(task)
        for _ in range(self._stops):  # asked meanwhile
            self._child.stop()
        while (outcome := self._child.ended()) is None:
            time.sleep(_LOOK_AGAIN)
        self._child = None
        return outcome

    def stop(self) -> None:
        """Ask the process to end at a checkpoint; a second time, at once. Nothing starts here any more."""
        self._stops += 1
        if self._child is not None:
            self._child.stop()


@dataclass
class _Place:
    actor: Any
    name: str = ""
    result: Any = None  # a reference to an Outcome, while there is a task


@dataclass
class RayExecutor:
    """A number of slots in a cluster whose nodes share the sweep's folder and have the same Prunus."""

    slots: int
    options: RayOptions = field(default_factory=RayOptions)
    _places: list[_Place] = field(default_factory=list)

    def __enter__(self) -> Self:
        ray = _ray()
        own = self.options.address == "local"
        # What a cluster has is for it to say; one of our own has as many cores as cells are to run at once.
        size = {"num_cpus": _cores(self.slots * self.options.cpus), "object_store_memory": _OWN_MEMORY} if own else {}
        try:
            ray.init(
                address=self.options.address,
                include_dashboard=False if own else None,
                log_to_driver=False,
                logging_level="ERROR",
                **size,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Ray at {self.options.address} cannot be used: {error}; type ray: {{address: local}}"
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        ray = _ray()
        with contextlib.suppress(ray.exceptions.RayError):
            if any(place.name for place in self._places):
                self.stop()
                self.stop()
                ray.wait([place.result for place in self._places if place.name], timeout=_GRACE)
        ray.shutdown()
        self._places.clear()

    def start(self, task: Task) -> int | None:
        """Start a task in a free slot; which process it is, only the node knows."""
        place = next((place for place in self._places if not place.name), None)
        if place is None:
            place = _Place(self._actor())
            self._places.append(place)
        place.name = task.name
        place.result = place.actor.run.remote(task)
        return None

    def ended(self) -> list[tuple[str, Outcome]]:
        """Return names and outcomes of the tasks that ended since the last call; a lost node ends its tasks."""
        ray = _ray()
        outcomes = []
        for place in [place for place in self._places if place.name]:
            if not ray.wait([place.result], timeout=0)[0]:
                continue
            try:
                outcome = ray.get(place.result)
            except ray.exceptions.RayError as error:
                outcome = Outcome(1, 0.0, (f"the Ray worker was lost: {str(error).splitlines()[0]}",))
                self._places.remove(place)  # another actor takes its part
            outcomes.append((place.name, outcome))
            place.name = ""
        return outcomes

    def stop(self) -> None:
        """Ask all tasks to end at a checkpoint; a second time, at once."""
        for place in self._places:
            if place.name:
                place.actor.stop.remote()

    def _actor(self) -> Any:
        # Two calls at once: stop has to get through while run waits.
        wanted = {"num_cpus": self.options.cpus, "num_gpus": self.options.gpus, "max_concurrency": 2}
        return _ray().remote(Slot).options(**wanted).remote()


def _cores(cpus: float) -> int:
    return max(1, -int(-cpus // 1))


def _ray() -> Any:
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1"
    )  # a cell without GPUs sees none; said, or Ray warns
    try:
        import ray
    except ImportError:
        raise ConfigError("--executor ray needs Ray, which is not installed: type pip install 'prunus[ray]'") from None
    return ray
