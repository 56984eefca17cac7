"""What a teacher adds to the loss, by hand, and that it is none the worse for it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, FileFormatError
from prunus.training import Recipe
from prunus.training.distillation import make_loss, soft_loss
from tests.training.conftest import Images, make_model, normalize
from tests.training.test_resume import interrupted_in

Train = Callable[..., tuple[nn.Module, list[dict[str, Any]]]]
CPU = torch.device("cpu")


def test_the_soft_loss_by_hand() -> None:
    """At T = 2 logits of 2·ln 3 and 0 are ln 3 and 0: the teacher says 3/4 and 1/4, the student 1/2 and 1/2."""
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[5.0, 5.0]])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_loss(student, teacher, 2.0).item() == pytest.approx(4 * divergence)
    same = torch.cat([student, teacher]), torch.cat([teacher, teacher])
    assert soft_loss(*same, 2.0).item() == pytest.approx(2 * divergence), "the mean over the batch"
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert soft_loss(teacher, student, 2.0).item() == pytest.approx(4 * reverse), "KL is not symmetric"


class Says(nn.Module):
    """Gives the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_the_weight_parts_the_loss() -> None:
    recipe = Recipe(1, distill=0.25, temperature=2.0, precision="float32")
    batch = torch.zeros(1, 1, 2, 2)
    loss = make_loss(recipe, Says(2 * math.log(3), 0.0), CPU, batch)
    student = torch.tensor([[0.0, 0.0]])
    soft = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert loss(student, batch, torch.tensor([1])).item() == pytest.approx(0.75 * math.log(2) + 0.25 * soft)
    with pytest.raises(ConfigError, match="the teacher tells 2 classes apart, and the network 3"):
        loss(torch.zeros(1, 3), batch, torch.tensor([1]))


def test_the_first_loss_of_a_training_by_hand(train: Train, images: Images) -> None:
    """One step on all images: the teacher sees the same batch, augmented, in evaluation mode."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    teacher = make_model().train()
    seen = normalize(images.train_images).flip(3)
    logs = student(seen).log_softmax(1).detach()
    soft = (copy.deepcopy(teacher).eval()(seen) / 4).softmax(1).detach()
    student_soft = (student(seen) / 4).softmax(1).detach()
    hard = -logs.gather(1, images.train_labels[:, None]).mean().item()
    divergence = (soft * (soft / student_soft).log()).sum(1).mean().item()

    recipe = Recipe(1, batch_size=80, learning_rate=1e-12, precision="float32", distill=0.4)
    flipped = {"augment": lambda batch, generator: normalize(batch).flip(3)}
    _, [metrics] = train(student, recipe=recipe, teacher=teacher, **flipped)
    assert metrics["loss"] == pytest.approx(0.6 * hard + 0.4 * 16 * divergence, rel=1e-5)


def test_the_teacher_is_left_as_it_is(train: Train, recipe: Recipe) -> None:
    teacher = make_model().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    model, _ = train(recipe=dataclasses.replace(recipe, distill=0.5), teacher=teacher)
    assert teacher.training and teacher[1].training  # type: ignore[index,union-attr]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])


def test_a_student_comes_to_say_what_its_teacher_says(train: Train, images: Images) -> None:
    """With all of the weight on the teacher, labels do not matter: even a teacher that is wrong is followed."""
    teacher = Says(-4.0, 4.0, -4.0)
    recipe = Recipe(6, batch_size=16, learning_rate=0.1, precision="float32", distill=1.0)
    model, history = train(recipe=recipe, teacher=teacher)
    assert bool((model(normalize(images.val_images)).argmax(1) == 1).all())
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_a_teacher_and_a_weight_need_each_other(train: Train, recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"distill is 0\.5 and fit has no teacher; pass teacher=model"):
        train(recipe=dataclasses.replace(recipe, distill=0.5))
    with pytest.raises(ConfigError, match=r"distill is 0 and there is a teacher; set distill=0\.5"):
        train(teacher=make_model())


def test_a_checkpoint_of_another_teacher_is_refused(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, distill=0.5)
    with pytest.raises(KeyboardInterrupt):
        train(recipe=recipe, teacher=make_model(), augment=interrupted_in(epoch=2, batches=5))
    with pytest.raises(FileFormatError, match="of another training: teacher is"):
        train(recipe=recipe, teacher=Says(0.0, 0.0, 1.0))
    assert len(train(recipe=recipe, teacher=make_model())[1]) == 4
