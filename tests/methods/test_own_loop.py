"""Pruning in a loop of the user's own: alone, in two processes, stopped and gone on with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import prunus
from prunus.errors import BudgetError, ConfigError, FileFormatError

EXAMPLE = torch.zeros(2, 1, 8, 8)
BUDGET = prunus.Budget(macs=0.5)


def batches(seed: int = 0, count: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(16, 1, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(count)
    ]


def started(seed: int = 0, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, prunus.SoftPruner]:
    torch.manual_seed(seed)
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, prunus.SoftPruner(model, EXAMPLE, BUDGET, **({"ramp_epochs": 2} | options))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: prunus.SoftPruner, epochs: int) -> list[Any]:
    """A loop as a user may write it, two batches to a step of the optimiser."""
    found = []
    for _ in range(epochs):
        model.train()
        for number, (images, labels) in enumerate(batches(pruner.epoch), 1):
            nn.functional.cross_entropy(model(images), labels).backward()
            if number % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
                pruner.step(optimizer)
        found.append(pruner.epoch_end())
    return found


def test_masks_ramp_up_to_the_budget_and_what_is_removed_is_proven() -> None:
    model, optimizer, pruner = started()
    dense = prunus.predict_cost(pruner.graph, pruner.graph.keep_all())
    found = train(model, optimizer, pruner, 3)
    allowed = [dense.macs * (1 - 0.5 * (1 - (1 - min(1, epoch / 2)) ** 3)) for epoch in (1, 2, 3)]
    assert all(0.9 * most < choice.macs <= most + 1 for choice, most in zip(found, allowed, strict=True))
    assert found[0].kept > found[1].kept and [choice.epoch for choice in found] == [1, 2, 3]
    before = copy.deepcopy(model.state_dict())
    result = pruner.remove()
    assert result.verification.passed
    assert prunus.count_cost(result.model, EXAMPLE).macs <= 0.5 * dense.macs
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    smaller = prunus.migrate_optimizer(optimizer, model, result)
    nn.functional.cross_entropy(result.model.train()(batches()[0][0]), batches()[0][1]).backward()
    smaller.step()


def test_a_loop_in_mixed_precision_ends_in_the_same_widths_nearly() -> None:
    kept = {}
    for dtype in (torch.bfloat16, None):
        model, optimizer, pruner = started(penalty="group_lasso", rho=0.01)
        scaler = torch.amp.GradScaler("cpu", enabled=dtype is not None)
        for _ in range(3):
            model.train()
            for images, labels in batches(pruner.epoch):
                with torch.autocast("cpu", dtype or torch.float32, enabled=dtype is not None):
                    loss = nn.functional.cross_entropy(model(images), labels)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                pruner.step(optimizer)
            pruner.epoch_end()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        result = pruner.remove()
        assert result.verification.passed
        kept[dtype] = set(np.flatnonzero(result.plan.keep_array(pruner.graph)).tolist())
    same = kept[torch.bfloat16] & kept[None]
    assert len(same) > 0.9 * len(kept[None]), "half of the channels go, so that few would agree by chance"


def test_the_penalty_makes_filters_short_and_grows_with_the_ramp() -> None:
    lengths = {}
    for penalty in (None, "group_lasso"):
        model, optimizer, pruner = started(penalty=penalty, rho=2.0)
        train(model, optimizer, pruner, 1)
        lengths[penalty] = float(model.get_parameter("layer2.0.conv1.weight").detach().flatten(1).norm(dim=1).mean())
    assert lengths["group_lasso"] < 0.9 * lengths[None]
    model, optimizer, pruner = started(penalty="bn_scale", rho=0.1)
    gamma = model.get_parameter("layer2.0.bn1.weight")
    pruner.step(optimizer)
    torch.testing.assert_close(gamma.detach(), torch.full_like(gamma, 1 - 0.05 * 0.1 * (1 - 0.5**3)))


def test_stopped_and_gone_on_with_it_ends_in_the_same_bits() -> None:
    whole = started(penalty="group_lasso")
    train(*whole, 4)
    model, optimizer, pruner = started(penalty="group_lasso")
    train(model, optimizer, pruner, 2)
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict())), json.dumps(pruner.state_dict())
    again = started(seed=1, penalty="group_lasso")
    again[0].load_state_dict(kept[0][0])
    again[1].load_state_dict(kept[0][1])
    again[2].load_state_dict(json.loads(kept[1]))
    train(*again, 2)
    assert all(torch.equal(tensor, whole[0].state_dict()[name]) for name, tensor in again[0].state_dict().items())
    assert again[2].remove().plan == whole[2].remove().plan
    with pytest.raises(FileFormatError, match="another network"):
        again[2].load_state_dict({"epoch": 1, "search": {"kept": "all"}})


def test_scores_are_of_the_weights_or_of_images_where_there_are_some() -> None:
    images = batches()[0][0]
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"criterion": "delivered_energy", "variance": "data-free"}),
        ({"calibration": images}, {"criterion": "delivered_energy", "calibration": images}),
        ({"calibration": [images], "criterion": "refit_error"}, {"criterion": "refit_error", "calibration": images}),
        ({"criterion": "fused_conv_bn", "norm": 1}, {"criterion": "fused_conv_bn", "norm": 1}),
    ]
    plans = []
    for options, wanted in cases:
        model, _, pruner = started(**options)
        scores = prunus.score(model, pruner.graph, budget=BUDGET, **wanted)
        expected = prunus.allocate(pruner.graph, scores, BUDGET).keep_array(pruner.graph)
        plans.append(pruner.search.final_plan(model).keep_array(pruner.graph))
        assert np.array_equal(plans[-1], expected), options
    assert len({plan.tobytes() for plan in plans}) == len(cases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": iter([EXAMPLE])}, "gone through every epoch: pass a tensor"),
        ({"criterion": "refit_error"}, "refit_error needs refit_error, which is measured on images"),
        ({"penalty": "group_laso"}, r"no penalty 'group_laso'\. Did you mean 'group_lasso'\?"),
        ({"ramp_epochs": 0}, "ramp_epochs is 0"),
        ({"rho": -1.0}, "rho is -1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        started(**options)


def test_what_cannot_work_is_said_before_the_training() -> None:
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    with pytest.raises(BudgetError, match="not reachable"):
        prunus.SoftPruner(model, EXAMPLE, prunus.Budget(macs=0.001))
    _, _, pruner = started(penalty="bn_scale")
    with pytest.raises(ConfigError, match=r"call step\(optimizer\)"):
        pruner.step()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
    pruner = prunus.SoftPruner(parallel, EXAMPLE, BUDGET, ramp_epochs=2)
    for epoch in range(2):
        for images, labels in batches(10 * rank + epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(parallel(images), labels).backward()
            optimizer.step()
            pruner.step()
        pruner.epoch_end()
    masks = [pruner.search.keep.copy()]
    with torch.no_grad():  # as if rounding had driven the processes apart
        for parameter in model.parameters():
            parameter.mul_(1 + 0.5 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(rank)))
    pruner.epoch_end()
    masks += [pruner.search.keep, pruner.search.final_plan(model).keep_array(pruner.graph)]
    np.save(Path(folder) / f"{rank}.npy", np.stack(masks))
    torch.distributed.destroy_process_group()


def test_two_processes_mask_and_remove_the_same_channels(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    first, second = (np.load(tmp_path / f"{rank}.npy") for rank in range(2))
    assert np.array_equal(first, second)
    assert not first[0].all()
