"""Processes that train one network together: who decides, what they tell each other, and how their gradients meet.

Started by `torchrun` or `accelerate launch`, one of them, rank 0, leads: it alone prints, writes, removes, proves and
chooses. The others take part in its trainings. What is told goes as JSON or as tensors; nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunus.errors import ConfigError, RunError

_PATIENCE = timedelta(days=7)  # what the others wait while rank 0 works alone; where it dies, the launcher ends them

Result = TypeVar("Result")


class Dismissed(BaseException):
    """Rank 0 has failed, which it tells the user itself; the others stop what they are at."""


@dataclass(frozen=True)
class Team:
    """The processes of one training; by default there is only this one, and every method does nothing.

    Attributes:
        rank: of this process; 0 leads.
        size: how many there are.
        device: where this one trains, and what is exchanged lies.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process decides."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Say which of `count` images are this process's; parts differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def tell(self, value: Any = None) -> Any:
        """Return rank 0's JSON-able `value`, on all; only rank 0's is looked at."""
        if self.size == 1:
            return value
        data = json.dumps(value).encode() if self.leads else b""
        length = torch.tensor([len(data)], device=self.device)
        self.share([length])
        text = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.leads:
            text.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self.share([text])
        return value if self.leads else json.loads(text.cpu().numpy().tobytes())

    def lead(self, act: Callable[[], Result]) -> Result | None:
        """Let rank 0 do something while the others wait, for whom it is None; where it fails, they are Dismissed."""
        if self.size == 1:
            return act()
        if not self.leads:
            if self.tell():
                raise Dismissed
            return None
        try:
            result = act()
        except BaseException:
            self.tell(True)
            raise
        self.tell(False)
        return result

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's tensors into those of the others."""
        if self.size > 1:
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                _exchange(lambda whole=whole: dist.broadcast(whole, 0))  # type: ignore[misc]
                if not self.leads:
                    tensor.detach().copy_(whole)

    def total(self, tensor: Tensor) -> float:
        """Add up a number over the processes."""
        if self.size == 1:
            return tensor.item()
        summed = tensor.detach().clone()
        _exchange(lambda: dist.all_reduce(summed))
        return summed.item()

    def any(self, flag: bool) -> bool:
        """Tell whether any process says so."""
        return flag if self.size == 1 else self.total(torch.tensor(float(flag), device=self.device)) > 0

    def mean_of(self, means: dict[str, float], count: int) -> dict[str, float]:
        """Return the means over all processes' examples, of which this one has `count`."""
        if self.size == 1:
            return means
        sums = torch.tensor([*(value * count for value in means.values()), count], dtype=torch.float64)
        on_device = sums.to(self.device)
        _exchange(lambda: dist.all_reduce(on_device))
        *summed, examples = on_device.tolist()
        found = {name: value / examples for name, value in zip(means, summed, strict=True)}
        return found | {"accuracy": round(found["accuracy"] * examples) / examples}  # a count again, as on one process

    def add_gradients(self, model: nn.Module, flags: Sequence[bool]) -> list[bool]:
        """Add up the gradients in place, in one message; with them goes which flags any process has set."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        told = torch.tensor([float(flag) for flag in flags], device=self.device)
        together = torch.cat([*(gradient.float().reshape(-1) for gradient in gradients), told])
        _exchange(lambda: dist.all_reduce(together))
        *summed, told = together.split([*(gradient.numel() for gradient in gradients), len(flags)])
        for gradient, total in zip(gradients, summed, strict=True):
            gradient.copy_(total.view(gradient.shape))
        return [value > 0 for value in told.tolist()]

    def average_statistics(self, *models: nn.Module | None) -> None:
        """Average BatchNorm's running statistics, which every process has of its own images.

        They are linear in what each batch adds, so that it does not matter how often they are averaged.
        """
        if self.size == 1:
            return
        names = ("running_mean", "running_var")
        for model in models:
            for name, buffer in model.named_buffers() if model is not None else ():
                if name.rpartition(".")[2] in names:
                    _exchange(lambda buffer=buffer: dist.all_reduce(buffer))  # type: ignore[misc]
                    buffer /= self.size


ALONE = Team()


def team_size() -> int:
    """Return how many processes the launcher has started, by its variable WORLD_SIZE; 1 without one."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1


def join_team(*, cpu: bool) -> Team:
    """Meet the other processes that `torchrun` or `accelerate launch` has started; ALONE without a launcher.

    Args:
        cpu: train on the CPU also where there is a GPU.

    Raises:
        ConfigError: there are others, and accelerate is not installed.
    """
    if team_size() == 1:
        return ALONE
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ConfigError(
            f"WORLD_SIZE is {team_size()}, and training across processes needs accelerate: "
            "pip install 'prunus[distributed]', or start prunus without torchrun"
        ) from error
    state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=_PATIENCE)
    return Team(state.process_index, state.num_processes, state.device)


def leave_team(team: Team) -> None:
    """Part in peace; a process that is left alone goes as well."""
    if team.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _exchange(exchange: Callable[[], object]) -> None:
    try:
        exchange()
    except RuntimeError as error:  # the backends' own errors are all of this kind
        reason = str(error).splitlines()[0][:200]
        raise RunError(
            f"another process of this run has ended, and says above why ({reason}). What was finished is kept; "
            "the same command goes on"
        ) from error
