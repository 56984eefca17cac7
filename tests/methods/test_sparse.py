"""The hook of sparse training: its ρ, its steps, what it records, and a training that is stopped and goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import step_by_step
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, FileFormatError
from prunus.graph.channels import ChannelGraph
from prunus.methods import RHO_SCHEDULES, SparseTraining
from prunus.methods.penalties import PENALTIES
from prunus.methods.sparse import BINS, QUANTILES, histogram
from prunus.training import Recipe, fit


@dataclass(frozen=True)
class Images:
    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(255, (72, 1, 6, 6), generator=generator, dtype=torch.uint8)
    labels = (pixels.float().mean((1, 2, 3)) > 127).long()
    return Images(pixels[:48], labels[:48], pixels[48:], labels[48:])


def network() -> tuple[nn.Sequential, ChannelGraph]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 2),
    )
    return model, prunus.trace(model, torch.zeros(2, 1, 6, 6))


def train(hook: SparseTraining, model: nn.Module, folder: Path | None = None, **changes: Any) -> list[dict[str, Any]]:
    recipe = Recipe(4, batch_size=16, learning_rate=0.05, precision="float32")
    settings: dict[str, Any] = {
        "augment": lambda batch, generator: batch.float() / 64 - 2,
        "normalize": lambda batch: batch.float() / 64 - 2,
        "progress": False,
        "stage": "sparse",
        "hook": hook,
        "checkpoint_dir": folder,
    }
    return fit(model, images(), recipe, **settings | changes)


def test_rho_grows_as_its_schedule_says() -> None:
    shares = {name: [schedule(epoch, 4) for epoch in (1, 2, 4, 9)] for name, schedule in RHO_SCHEDULES.items()}
    assert shares == {"constant": [1, 1, 1, 1], "linear": [0.25, 0.5, 1, 1], "cubic": [1 - 0.75**3, 1 - 0.5**3, 1, 1]}


def test_the_penalty_steps_after_every_step_of_the_optimiser_by_its_rate() -> None:
    model, graph = network()
    hook = SparseTraining(graph, "bn_scale", rho=0.1, schedule="linear", ramp_epochs=2)
    rates: list[float] = []
    step = hook.step_end

    def watched(model: nn.Module, learning_rate: float) -> None:
        gamma = model.get_parameter("1.weight").detach().clone()
        step(model, learning_rate)
        expected = nn.functional.softshrink(gamma, learning_rate * hook.rho)
        torch.testing.assert_close(model.get_parameter("1.weight").detach(), expected)
        rates.append(learning_rate)

    hook.step_end = watched  # type: ignore[method-assign]
    rows = train(hook, model)
    assert len(rates) == 4 * 3 and rates[0] == 0.05 and rates[-1] == rows[-1]["learning_rate"] < 0.01
    assert [row["rho"] for row in rows] == [0.05, 0.1, 0.1, 0.1]


def index_of(model: nn.Module, graph: ChannelGraph) -> Tensor:
    scores = prunus.score(model, graph, "channel_sparsity", normalize="none", t=0.2, lam=0.5)
    return 1 - torch.cat(list(scores.values()))


def test_an_epoch_records_what_has_become_of_the_index() -> None:
    model, graph = network()
    index = index_of(model, graph)
    hook = SparseTraining(graph, "group_lasso", rho=3.0, ramp_epochs=2, t=0.2, lam=0.5)
    rows = train(hook, model)
    assert rows[0]["index_before"] == histogram(index) and "index_before" not in rows[1]
    after = 1 - torch.cat(
        list(prunus.score(model, graph, "channel_sparsity", normalize="none", t=0.2, lam=0.5).values())
    )
    last = rows[-1]
    assert last["index_histogram"] == histogram(after)
    assert sum(last["index_histogram"]) == last["index_channels"] == 14
    assert last["redundant_channels"] == int((after >= 0.5).sum()) > int((index >= 0.5).sum())
    assert len(last["index_quantiles"]) == len(QUANTILES)
    assert last["index_quantiles"][3] == pytest.approx(float(torch.quantile(after, 0.5)), abs=1e-6)
    assert last["penalty"] < rows[0]["penalty"]


def test_the_histogram_has_equal_bins_from_zero_to_one() -> None:
    counts = histogram(torch.tensor([0.0, 0.01, 0.06, 0.5, 1.0]))
    assert len(counts) == BINS and (counts[0], counts[3], counts[25], counts[49], sum(counts)) == (2, 1, 1, 1, 5)


class Stop(Exception):
    pass


@pytest.mark.parametrize("penalty", PENALTIES)
def test_stopped_and_gone_on_with_it_ends_in_the_same_bits(penalty: str, tmp_path: Path) -> None:
    def started() -> tuple[SparseTraining, nn.Module]:
        model, graph = network()
        return SparseTraining(graph, penalty, rho=0.5, ramp_epochs=3), model

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise Stop

    def rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in history]

    hook, whole = started()
    expected = train(hook, whole)
    with pytest.raises(Stop):
        train(*started(), tmp_path, on_epoch=stop)
    hook, again = started()
    assert rows(train(hook, again, tmp_path)) == rows(expected)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())
    stops, history = step_by_step(lambda stopping: train(*started(), tmp_path / "steps", stopping=stopping))
    assert stops == 4 * 3 - 1
    assert rows(history) == rows(expected)


def test_the_state_of_another_sparse_training_is_refused() -> None:
    _, graph = network()
    state = SparseTraining(graph, rho=0.1).state()
    SparseTraining(graph, rho=0.1).load_state(state)
    with pytest.raises(FileFormatError, match=r"another sparse training: rho is 0\.1 there and 0\.2 here"):
        SparseTraining(graph, rho=0.2).load_state(state)
    del state["rho_now"]
    with pytest.raises(FileFormatError, match="another sparse training: rho_now is missing; delete it"):
        SparseTraining(graph, rho=0.1).load_state(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "bn_scal"}, "no penalty 'bn_scal'. Did you mean 'bn_scale'"),
        ({"schedule": "quadratic"}, "no ρ schedule 'quadratic'. There are: constant, linear, cubic"),
        ({"rho": -1.0}, "rho is -1.0"),
        ({"ramp_epochs": 0}, "ramp_epochs is 0"),
        ({"penalty": "sparsity_degree", "t": 0.0}, "threshold t above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseTraining(network()[1], **options)


def test_a_network_without_what_the_penalty_draws_is_refused() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(ConfigError, match="pass penalty='group_lasso'"):
        SparseTraining(prunus.trace(plain, torch.zeros(1, 1, 6, 6)), "bn_scale")
    with pytest.raises(ConfigError, match="nothing of this network can be pruned"):
        SparseTraining(prunus.trace(nn.Conv2d(1, 4, 3), torch.zeros(1, 1, 6, 6)))
