from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from prunus.training import evaluate


class FirstPixel(nn.Module):
    """Logits (pixel, 0), and noise in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        pixel = x[:, 0, 0, 0] + (1e6 if self.training else 0)
        return torch.stack((pixel, torch.zeros_like(pixel)), 1)


IMAGES = torch.tensor([1, 2, 0, 4, 1], dtype=torch.uint8).reshape(5, 1, 1, 1)
LABELS = torch.tensor([0, 0, 1, 1, 0])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_by_hand(batch_size: int) -> None:
    model = FirstPixel()
    metrics = evaluate(model, IMAGES, LABELS, normalize=lambda x: x.float() - 0.5, batch_size=batch_size)
    # the pixels are 0.5, 1.5, −0.5, 3.5, 0.5; the loss of the right class is log(1 + e^−margin)
    margins = [0.5, 1.5, 0.5, -3.5, 0.5]
    assert metrics["accuracy"] == 0.8
    assert metrics["loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 5, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back_even_after_an_error(training: bool) -> None:
    model = FirstPixel().train(training)
    evaluate(model, IMAGES, LABELS, normalize=Tensor.float)
    assert model.training is training
    with pytest.raises(IndexError):
        evaluate(model, IMAGES, LABELS, normalize=torch.flatten)
    assert model.training is training


def test_no_graph_is_kept() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    seen: list[bool] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    evaluate(model, IMAGES, LABELS, normalize=Tensor.float)
    assert seen == [False]
