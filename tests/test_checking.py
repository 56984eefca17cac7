"""A check can fail: every way in which a pruned network may be wrong gives a row that says so."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import checking
from prunus.api import PruneResult, prune
from prunus.checking import CheckRow, check_model, group_frozen, judge, randomise, read_specs, zoo_specs
from prunus.errors import ConfigError, FileFormatError, SurgeryError, VerificationError
from prunus.graph.channels import Freeze
from prunus.models import MODELS, Source
from prunus.models.sources import Arguments
from prunus.verify import Verification
from tests.silenced import relative_error


class Net(nn.Module):
    """Two convolutions with a norm between, a scale, and a head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.scale = nn.Parameter(1e-6 * torch.ones(6, 1, 1))
        self.fc, self.aux = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.scale * torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        x = x.mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


def source(model: nn.Module | None = None) -> Source:
    inputs: list[Arguments] = [(torch.rand(2, 3, 12, 12),)]
    return Source("net", lambda: (model or Net(), inputs))


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> CheckRow:
    """Check with a `prune` whose result `change` takes and returns."""

    def wrong(model: nn.Module, *args: Any, **kwargs: Any) -> PruneResult:
        result: PruneResult = change(model, prune(model, *args, **kwargs))
        return result

    monkeypatch.setattr(checking, "prune", wrong)
    return check_model(source())


def test_a_good_network_is_exact_and_small() -> None:
    row = check_model("resnet8")
    assert (row.verdict, row.reason, row.ratio) == ("exact", "", 0.5)
    assert row.params_before == sum(p.numel() for p in MODELS["resnet8"]().parameters())
    assert row.params_after and row.macs_before and row.macs_after
    assert 0.2 < row.params_after / row.params_before < 0.3
    assert 0.2 < row.macs_after / row.macs_before < 0.3
    assert row.max_relative_error is not None and row.max_relative_error < 1e-12
    assert row.input_shapes == ((2, 3, 32, 32),)
    assert row.frozen and row.frozen[0].tensor == "fc.weight"
    assert CheckRow.model_validate_json(row.model_dump_json()) == row


def test_a_row_is_the_same_again_and_leaves_the_random_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = check_model("resnet8", 0.3)
    assert torch.equal(torch.get_rng_state(), state)
    second = check_model("resnet8", 0.3)
    assert first.model_copy(update={"seconds": {}}) == second.model_copy(update={"seconds": {}})
    assert first.params_after != check_model("resnet8", 0.6).params_after


def test_whatever_goes_wrong_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_model("resnet21").reason.startswith("There is no model named 'resnet21'")
    for error, reason in (
        (SurgeryError("no\n  axis"), "no axis"),
        (VerificationError("it differs"), "VerificationError: it differs"),
        (IndexError("out of\nrange"), "IndexError: out of range"),
        (RecursionError(), "RecursionError: no message"),
        (ValueError("x" * 9999), "ValueError: " + "x" * 387 + "…"),
        (ValueError(f"{Path.cwd()}/a.py in /opt/x/lib/site-packages/timm/b.py"), "ValueError: a.py in timm/b.py"),
    ):
        monkeypatch.setattr(checking, "prune", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        row = check_model(source())
        assert (row.verdict, row.reason) == ("failed", reason)
        assert row.params_before == 704 and row.params_after is None


def test_ctrl_c_is_not_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "prune", stop)
    with pytest.raises(KeyboardInterrupt):
        check_model(source())


def test_a_plan_that_its_network_does_not_bear_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(_: nn.Module, result: PruneResult) -> PruneResult:
        after = dataclasses.replace(result.plan.after, params=result.plan.after.params + 1)
        return dataclasses.replace(result, plan=result.plan.model_copy(update={"after": after}))

    row = changed(monkeypatch, more)
    assert row.verdict == "failed" and row.reason.startswith("the pruned network has ")

    def heavier(_: nn.Module, result: PruneResult) -> PruneResult:
        result.model.register_buffer("extra", torch.zeros(3))
        return result

    assert "state dict has" in changed(monkeypatch, heavier).reason


def test_other_names_or_larger_tensors_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(_: nn.Module, result: PruneResult) -> PruneResult:
        result.model.head = result.model.fc
        del result.model.fc
        return result

    assert "other names" in changed(monkeypatch, renamed).reason

    def longer(_: nn.Module, result: PruneResult) -> PruneResult:
        weight = result.model.conv1.weight  # as many elements along another axis
        result.model.conv1.weight = nn.Parameter(weight.data.reshape(weight.shape[1], -1, 3, 3))
        return result

    assert "conv1.weight went from (8, 3, 3, 3) to (3, 4, 3, 3)" in changed(monkeypatch, longer).reason


def test_training_mode_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_aux(_: nn.Module, result: PruneResult) -> PruneResult:
        result.model.forward = lambda x: type(result.model).forward(result.model.eval(), x)
        return result

    assert (
        changed(monkeypatch, no_aux).reason == "in training mode its outputs have shapes [(2, 2)], not [(2, 2), (2, 2)]"
    )

    def raises(_: nn.Module, result: PruneResult) -> PruneResult:
        def forward(x: Tensor) -> Tensor:
            raise IndexError("too far")

        result.model.forward = forward
        return result

    expected = "the pruned network does not run in training mode: IndexError: too far"
    assert changed(monkeypatch, raises).reason == expected


@pytest.mark.parametrize("what", ["weights", "mode", "random state"])
def test_an_original_that_was_changed_is_seen(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def meddle(model: nn.Module, result: PruneResult) -> PruneResult:
        if what == "weights":
            model.get_parameter("conv1.weight").data[0, 0, 0, 0] += 1
        elif what == "mode":
            model.eval()
        else:
            torch.rand(1)
        return result

    assert changed(monkeypatch, meddle).reason.startswith("the original was changed")


def test_a_network_that_never_trained_is_not_blamed_for_it() -> None:
    class NoTraining(Net):
        def forward(self, x: Tensor) -> Any:
            assert not self.training, "only for use"
            return super().forward(x)

    assert not randomise(NoTraining(), (torch.rand(2, 3, 12, 12),))
    assert randomise(Net(), (torch.rand(2, 3, 12, 12),))


def test_the_verdict_of_a_proof() -> None:
    proof = Verification(True, 3e-16, 1e-10, "float64", 2, 1, mixing=("aten.native_layer_norm",))
    assert judge(proof) == ("exact", "")
    wide = dataclasses.replace(proof, max_relative_error=1e-7, tolerance=1e-5)
    assert judge(wide) == ("approximate", "aten.native_layer_norm: within 1e-05 in float64 only")
    assert judge(dataclasses.replace(proof, dtype="float32"))[0] == "approximate"
    assert judge(dataclasses.replace(proof, passed=False, failure="no")) == ("failed", "no")
    assert judge(dataclasses.replace(proof, max_relative_error=float("nan")))[0] == "approximate"


def test_equal_reasons_become_one() -> None:
    freezes = [Freeze(f"layer{i}.weight", "is odd", 8, "aten.cumsum", "net.py:3") for i in range(50)]
    other = Freeze("fc.weight", "it is an output of the model", 1000)
    few, many = group_frozen([*freezes, other])
    assert (many.tensor, many.count, many.channels, many.op, many.where) == (
        "layer0.weight",
        50,
        400,
        "aten.cumsum",
        "net.py:3",
    )
    assert (few.tensor, few.count, few.channels) == ("fc.weight", 1, 1000)


def test_randomised_values_leave_no_place_for_a_wrong_slice() -> None:
    torch.manual_seed(0)
    model, inputs = Net(), (torch.rand(2, 3, 12, 12),)
    before = torch.get_rng_state()
    assert randomise(model, inputs)
    assert model.training and model.norm.momentum == 0.1
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert len(tensor.unique()) == tensor.numel(), f"{name} has equal entries"
    assert float(model.scale.detach().min()) >= 0.5
    model.eval()
    whole = model(*inputs)
    for channel in range(8):  # each channel counts, so that the wrong one is seen
        with torch.no_grad():
            kept = model.conv2.weight[:, channel].clone()
            model.conv2.weight[:, channel] = 0
            assert relative_error(model(*inputs), whole) > 1e-6
            model.conv2.weight[:, channel] = kept


def test_deep_networks_neither_vanish_nor_overflow() -> None:
    model, inputs = MODELS["resnet110"](), (torch.rand(2, 3, 16, 16),)
    randomise(model, inputs)
    out = model.eval()(*inputs)
    assert 1e-3 < float((out[0] - out[1]).detach().abs().max()) < 1e3


def test_networks_do_not_stay_in_memory() -> None:
    made: list[weakref.ref[nn.Module]] = []

    def build() -> tuple[nn.Module, list[Arguments]]:
        model = Net()
        made.append(weakref.ref(model))
        return model, [(torch.rand(2, 3, 12, 12),)]

    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    def build_broken() -> tuple[nn.Module, list[Arguments]]:
        model = Broken()
        made.append(weakref.ref(model))
        return model, [(torch.rand(2, 3, 12, 12),)]

    check_model(Source("good", build))
    check_model(Source("bad", build_broken))
    gc.collect()
    assert len(made) == 2 and all(reference() is None for reference in made)


def test_lists_of_networks(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("# all\n\nresnet8  # small\ntimm:resnet18\nresnet8\n")
    assert read_specs(file) == ["resnet8", "timm:resnet18"]
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="names no network; write one a line"):
        read_specs(file)
    with pytest.raises(FileFormatError, match="no list of networks"):
        read_specs(tmp_path / "missing.txt")
    assert zoo_specs() == list(MODELS)


def test_the_list_of_networks_is_found_whole() -> None:
    from prunus.models import find_network

    specs = read_specs(Path(__file__).parent / "coverage_models.txt")
    assert len(specs) >= 120 and set(MODELS) <= set(specs)
    assert sum(spec.startswith("timm:") for spec in specs) >= 220
    for spec in specs:
        find_network(spec)


BLOCKS = [s for s in read_specs(Path(__file__).parent / "coverage_models.txt") if s.startswith("tests.blocks:")]


@pytest.mark.parametrize("spec", BLOCKS)
def test_every_piece_is_a_network_that_trains(spec: str) -> None:
    from prunus.models import load_network

    network = load_network(spec)
    with torch.no_grad():
        network.model.eval()(*network.inputs)
        network.model.train()(*network.inputs)


def test_every_piece_is_on_the_list() -> None:
    from tests import blocks

    made = {
        name for name, value in vars(blocks).items() if getattr(value, "__annotations__", {}).get("return") == "Made"
    }
    assert {f"tests.blocks:{name}" for name in made} == set(BLOCKS)
