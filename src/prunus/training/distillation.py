"""What a training minimises: cross-entropy, alone or beside what a teacher says (Hinton 2015, arXiv:1503.02531)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.training.hardware import choose_compute
from prunus.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits (N, classes), batch (N, C, H, W), labels → mean loss
# Labels are classes (N,) or, blended by mixup, probabilities (N, classes).


def make_loss(recipe: Recipe, teacher: nn.Module | None, device: torch.device, images: Tensor) -> Loss:
    """Make the loss of a recipe: (1 − w) · cross-entropy + w · T² · KL(teacher ‖ student), with w = distill.

    The teacher is copied; the copy runs in evaluation mode, without gradients, on the batch that the student has seen
    and in the recipe's precision.

    Args:
        recipe: its distill, temperature, label_smoothing (of the cross-entropy alone) and precision are looked at.
        teacher: a classifier with the student's classes; None where the recipe distils nothing.
        device: where the training runs.
        images: a batch (N, C, H, W), float32 on `device`, to try the teacher on.

    Raises:
        ConfigError: the recipe wants a teacher and there is none, or the other way round; or, from the loss, the
            teacher has other classes.
    """
    if (teacher is None) != (recipe.distill == 0):
        lacks = "fit has no teacher; pass teacher=model" if teacher is None else "there is a teacher; set distill=0.5"
        raise ConfigError(f"training recipe: distill is {recipe.distill:g} and {lacks}.")

    def cross_entropy(logits: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)

    if teacher is None:
        return cross_entropy
    asked = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    compute = choose_compute(asked, recipe.precision, device, images)

    def both(logits: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad(), compute.autocast():
            said = asked(compute.lay_out(batch)).float()
        if said.shape != logits.shape:
            raise ConfigError(f"the teacher tells {said.shape[1]} classes apart, and the network {logits.shape[1]}.")
        hard, soft = cross_entropy(logits, batch, labels), soft_loss(logits, said, recipe.temperature)
        return (1 - recipe.distill) * hard + recipe.distill * soft

    return both


def soft_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over a batch.

    T² keeps the gradient as large as that of the cross-entropy, whatever the temperature (Hinton 2015, section 2).

    Args:
        logits: the student's, (N, classes).
        teacher_logits: the teacher's, (N, classes).
        temperature: T > 0; above 1 the classes that the teacher deems unlikely count more.
    """
    student, teacher = (F.log_softmax(values / temperature, 1) for values in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
