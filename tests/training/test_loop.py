from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from prunus.errors import TrainingError
from prunus.training import Recipe, evaluate
from prunus.training.hardware import Compute, choose_compute
from tests.training.conftest import Images, augment, make_model, normalize

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 3))


def test_it_learns(train: Train, images: Images) -> None:
    model, history = train()
    accuracy = evaluate(model, images.val_images, images.val_labels, normalize=normalize)["accuracy"]
    assert accuracy > 0.9
    assert history[-1]["val_accuracy"] == accuracy
    assert [metrics["epoch"] for metrics in history] == [1, 2, 3, 4]


def test_metrics_by_hand(train: Train, images: Images) -> None:
    """One step on all images, too small to change anything: the loss and the accuracies are those of the start."""
    model = linear()
    logits = model(normalize(images.train_images)).detach()
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    right = logs.gather(1, images.train_labels[:, None]).squeeze(1)
    smoothed = -(0.8 * right + 0.2 * logs.mean(1)).mean().item()
    val_logits = model(normalize(images.val_images)).detach()

    recipe = Recipe(1, batch_size=80, learning_rate=1e-12, label_smoothing=0.2, precision="float32")
    _, history = train(model, recipe=recipe, augment=lambda batch, generator: normalize(batch))
    [metrics] = history
    assert metrics["stage"] == "dense"
    assert metrics["epoch"] == 1
    assert metrics["loss"] == pytest.approx(smoothed, rel=1e-5)
    assert metrics["train_accuracy"] == pytest.approx((logits.argmax(1) == images.train_labels).double().mean().item())
    assert metrics["val_loss"] == pytest.approx(F.cross_entropy(val_logits, images.val_labels).item(), rel=1e-5)
    assert metrics["val_accuracy"] == pytest.approx((val_logits.argmax(1) == images.val_labels).double().mean().item())
    assert metrics["learning_rate"] == 1e-12
    assert metrics["seconds"] > 0


def test_every_image_once_an_epoch_but_for_the_incomplete_batch(train: Train, images: Images) -> None:
    seen: list[Tensor] = []

    def watch(batch: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(batch)
        return normalize(batch)

    train(linear(), augment=watch, recipe=Recipe(2, batch_size=32, precision="float32"))
    assert [len(batch) for batch in seen] == [32, 32, 32, 32]
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    for epoch in (first, second):
        assert len(epoch.flatten(1).unique(dim=0)) == 64
    assert not torch.equal(first, second)


def test_fewer_images_than_a_batch_are_one_batch(train: Train) -> None:
    _, history = train(recipe=Recipe(1, batch_size=1000, precision="float32"))
    assert history[0]["train_accuracy"] > 0


def test_the_seed_and_the_stage_decide(train: Train) -> None:
    def weights(**changes: Any) -> Tensor:
        model, _ = train(linear(), checkpoint_dir=None, **changes)
        return model[1].weight.detach()  # type: ignore[index,no-any-return]

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights(seed=1))
    assert not torch.equal(weights(), weights(stage="finetune"))


def test_a_loss_that_is_no_number_ends_the_training(train: Train, tmp_path: Path) -> None:
    calls = 0

    def poison(batch: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        return augment(batch, generator) * (float("inf") if calls == 8 else 1)  # in the second epoch of 5 batches

    with pytest.raises(TrainingError, match=r"no longer finite in epoch 2 .* lower learning rate such as 0\.0125"):
        train(augment=poison)
    _, resumed = train()  # the checkpoint of the first epoch is whole
    _, history = train(checkpoint_dir=None)
    assert [m["loss"] for m in resumed] == [m["loss"] for m in history]


def test_no_checkpoint_has_weights_that_are_no_numbers(train: Train, tmp_path: Path) -> None:
    """A loss that is a number until the last step, which spoils the weights."""
    model = make_model()

    def spoil(batch: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            model.get_parameter("unused")[0, 0] = float("nan")
        return augment(batch, generator)

    with pytest.raises(TrainingError, match=r"no longer finite in epoch 1 .* The last checkpoint is from before"):
        train(model, augment=spoil)
    with pytest.raises(TrainingError, match="no longer finite in epoch 1 "):
        train(model, augment=spoil, checkpoint_minutes=0)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_too_high_a_rate_ends_early(train: Train) -> None:
    with pytest.raises(TrainingError, match="epoch 1"):
        train(recipe=Recipe(4, batch_size=16, learning_rate=1e30, precision="float32"))


class Views(nn.Module):
    """Needs contiguous activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(x.shape[0], -1))  # type: ignore[no-any-return]


def test_a_model_with_views_is_trained_contiguous(train: Train, images: Images) -> None:
    _, history = train(Views(), checkpoint_dir=None)
    assert len(history) == 4
    batch = normalize(images.val_images[:2])
    assert choose_compute(Views(), "float32", torch.device("cpu"), batch).memory_format == torch.contiguous_format
    assert choose_compute(make_model(), "float32", torch.device("cpu"), batch).memory_format == torch.channels_last


@pytest.mark.parametrize(("channels", "is_safe"), [(7, False), (16, True)])
def test_few_inputs_of_a_strided_shortcut_are_not_trained_channels_last(channels: int, is_safe: bool) -> None:
    """In float32 on a CPU the backward pass writes past its memory (oneDNN 6035), and ends this process with AVX2."""
    cpu, images = torch.device("cpu"), torch.zeros(32, channels, 32, 32)
    shortcut = nn.Sequential(nn.Conv2d(channels, 17, 1, stride=2, bias=False), nn.Flatten(), nn.Linear(17 * 256, 2))
    compute = choose_compute(shortcut, "float32", cpu, images)
    assert (compute.memory_format == torch.channels_last) is is_safe
    assert choose_compute(shortcut, "bfloat16", cpu, images).memory_format == torch.channels_last
    shortcut.to(memory_format=compute.memory_format)  # type: ignore[call-overload]  # torch's stub has no such overload
    for _ in range(8):
        shortcut(compute.lay_out(torch.randn_like(images))).sum().backward()


class Narrows:
    """Puts a network with fewer channels in the place of the first, and notes how the weights lie in each epoch."""

    def __init__(self) -> None:
        self.is_contiguous: list[bool] = []

    def epoch_start(self, model: nn.Module, epoch: int) -> None: ...

    def replace(self, model: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer] | None:
        return (small := with_shortcut(7), SGD(small.parameters())) if len(self.is_contiguous) == 2 else None

    def epoch_end(self, model: nn.Module, epoch: int, metrics: dict[str, Any]) -> bool:
        self.is_contiguous.append(next(model.parameters()).is_contiguous())
        return False

    def rebuild(self, model: nn.Module) -> nn.Module:
        return model

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


def with_shortcut(channels: int) -> nn.Module:
    strided = nn.Conv2d(channels, 4, 1, stride=2)
    return nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), strided, nn.Flatten(), nn.Linear(36, 3))


def test_a_network_that_narrows_is_laid_out_anew(train: Train) -> None:
    hook = Narrows()
    train(with_shortcut(16), hook=hook, checkpoint_dir=None)
    assert hook.is_contiguous == [False, False, True, True]


def test_choosing_leaves_the_model_and_the_random_states_alone(images: Images) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    choose_compute(model, "auto", torch.device("cpu"), normalize(images.val_images[:2]))
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_model_comes_back_contiguous_and_ready_to_use(train: Train) -> None:
    model, _ = train()
    assert not model.training
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_errors_of_the_model_are_not_hidden(train: Train) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision(train: Train, precision: str) -> None:
    kinds: set[torch.dtype] = set()
    model = make_model()
    model[0].register_forward_hook(  # type: ignore[index,operator]
        lambda module, inputs, output: kinds.add(output.dtype) if module.training else None
    )
    _, history = train(model, recipe=Recipe(3, batch_size=16, precision=precision))  # type: ignore[arg-type]
    assert kinds == {getattr(torch, precision)}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert history[-1]["val_accuracy"] > 0.8


@pytest.mark.parametrize(
    ("settings", "groups", "exact"),
    [
        ({"stride": 2, "padding": 1}, 8, True),
        ({"stride": (1, 2), "padding": 1, "bias": False}, 8, True),
        ({"dilation": 2}, 8, True),
        ({"kernel_size": 5}, 8, True),
        ({"padding": "same"}, 8, False),
        ({"stride": 2}, 4, False),
        ({"stride": 2}, 1, False),
    ],
)
def test_depthwise_convolutions_that_are_slow_in_bfloat16_are_computed_in_float32(
    settings: dict[str, Any], groups: int, exact: bool
) -> None:
    """The gradient of the first four takes several times as long in bfloat16 (benchmarks/depthwise.py)."""
    torch.manual_seed(0)
    images = torch.randn(4, 8, 9, 9)
    layer = nn.Conv2d(8, 8, groups=groups, **{"kernel_size": 3} | settings)
    compute = Compute(torch.device("cpu"), bfloat16=True, memory_format=torch.channels_last)
    with compute.autocast():
        found = layer(images)
    found.float().square().sum().backward()
    assert found.dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
    whole = copy.deepcopy(layer)
    whole.zero_grad()
    expected = whole(images)
    expected.bfloat16().float().square().sum().backward()
    assert torch.equal(found, expected.bfloat16()) is exact
    assert layer.weight.grad is not None and whole.weight.grad is not None
    assert torch.equal(layer.weight.grad, whole.weight.grad) is exact
    assert torch.allclose(layer.weight.grad, whole.weight.grad, rtol=0.05, atol=0.05 * float(whole.weight.grad.std()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(train: Train, images: Images, recipe: Recipe) -> None:
    def on_device(batch: Tensor, generator: torch.Generator) -> Tensor:
        return normalize(batch) + 0.1 * torch.randn(batch.shape, generator=generator, device=batch.device)

    model, history = train(device="cuda", augment=on_device)
    assert next(model.parameters()).is_cuda
    assert history[-1]["val_accuracy"] > 0.9
    _, again = train(make_model(), device="cuda", augment=on_device)
    assert again == history


def test_dropout_does_not_depend_on_what_was_drawn_before(train: Train) -> None:
    first, _ = train(make_model(), checkpoint_dir=None)
    second_model = make_model()
    torch.rand(7)
    second, _ = train(second_model, checkpoint_dir=None)
    assert torch.equal(second.state_dict()["0.weight"], first.state_dict()["0.weight"])


@pytest.mark.parametrize("pieces", [3, 8])
def test_the_pieces_of_a_batch_add_up_to_its_gradient(train: Train, pieces: int) -> None:
    """Of 16 images three pieces are uneven; a network without BatchNorm trains as on the whole batch."""
    whole, before = train(linear(), checkpoint_dir=None)
    accumulated, after = train(
        linear(),
        checkpoint_dir=None,
        recipe=Recipe(
            4,
            batch_size=16,
            learning_rate=0.05,
            warmup_epochs=1,
            label_smoothing=0.1,
            precision="float32",
            accumulate=pieces,
        ),
    )
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, accumulated.state_dict()[name], rtol=0, atol=1e-6), name
    for one, other in zip(before, after, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["train_accuracy"] == other["train_accuracy"]


def test_a_network_sees_a_piece_at_a_time(train: Train) -> None:
    seen: list[int] = []
    model = make_model()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])) if module.training else None)
    train(model, checkpoint_dir=None, recipe=Recipe(1, batch_size=32, precision="float32", accumulate=3))
    assert seen == [10, 11, 11] * 2
