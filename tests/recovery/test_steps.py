"""Steps after one another: their order, and that each goes on from the one before."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.recovery.networks import difference, same_tensors
from tests.silenced import half_plan, randomise

import prunus
from prunus.errors import ConfigError
from prunus.models import build_model
from prunus.recovery import STEPS, compensate, even_batches, in_order, recalibrate, reconstruct, recover

IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_steps_have_an_order_of_their_own() -> None:
    assert in_order(["recalibrate", "compensate", "recalibrate"]) == ("compensate", "recalibrate")
    assert in_order("reconstruct") == ("reconstruct",)
    assert in_order(()) == ()
    assert in_order(reversed(STEPS)) == STEPS
    with pytest.raises(ConfigError, match=r"no recovery step 'refit'. There are: compensate, reconstruct, recalib"):
        in_order(["refit"])


def test_each_step_goes_on_from_the_one_before() -> None:
    torch.manual_seed(1)
    model = randomise(build_model("resnet8")).eval()
    graph = prunus.trace(model, IMAGES[:1])
    plan = half_plan(graph)
    small = prunus.remove(model, graph, plan)
    before = copy.deepcopy(small)
    found = list(recover(model, small, graph, plan, IMAGES, ("recalibrate", "reconstruct", "compensate")))
    assert [one.step for one in found] == list(STEPS)
    expected, _ = compensate(model, small, graph, plan, IMAGES)
    assert same_tensors(found[0].model, expected)
    expected, report = reconstruct(model, expected, graph, plan, IMAGES)
    assert same_tensors(found[1].model, expected) and found[1].report == report
    assert same_tensors(found[2].model, recalibrate(expected, IMAGES)) and found[2].report is None
    assert same_tensors(small, before)


def test_batches_are_as_equal_as_can_be() -> None:
    assert [len(batch) for batch in even_batches(IMAGES[:33], 16)] == [11, 11, 11]
    assert [len(batch) for batch in even_batches(IMAGES[:33], 32)] == [17, 16]
    assert [len(batch) for batch in even_batches(IMAGES[:3], 64)] == [3]
    assert torch.equal(torch.cat(even_batches(IMAGES, 7)), IMAGES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    torch.manual_seed(1)
    model = randomise(build_model("resnet8")).eval()
    graph = prunus.trace(model, IMAGES[:1])
    plan = half_plan(graph)
    small = prunus.remove(model, graph, plan)
    *_, expected = recover(model, small, graph, plan, IMAGES, STEPS)
    *_, found = recover(model.cuda(), small.cuda(), graph, plan, IMAGES, STEPS)
    assert next(found.model.parameters()).is_cuda
    assert difference(found.model.cpu(), expected.model, IMAGES) < 1e-2
