from __future__ import annotations

import pytest

from prunus.errors import ConfigError
from prunus.training import Recipe, dense_recipe, finetune_recipe


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(0, learning_rate=-1.0, schedule="step", label_smoothing=1.0)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "epochs is 0, and must be 1 or more" in message
    assert "learning_rate is -1.0, and must be above 0" in message
    assert "schedule is 'step', and must be one of one-cycle, cosine, multi-step, constant" in message
    assert "label_smoothing is 1.0, and must be in [0, 1)" in message
    assert "momentum" not in message


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "momentum", "warmup_epochs"])
def test_nan_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Recipe(2, **{field: float("nan")})  # type: ignore[arg-type]


@pytest.mark.parametrize("epochs", [1, 2, 7, 300])
def test_warmup_scales_with_the_epochs(epochs: int) -> None:
    assert dense_recipe(epochs).warmup_epochs == pytest.approx(0.2 * epochs)
    assert dense_recipe(epochs).schedule == "one-cycle"
    assert 0 < finetune_recipe(epochs).warmup_epochs <= 1
    assert finetune_recipe(epochs).schedule == "cosine"


def test_any_field_can_be_changed() -> None:
    assert dense_recipe(3, batch_size=32, warmup_epochs=0).batch_size == 32
    assert finetune_recipe(3, learning_rate=0.01).learning_rate == 0.01
    with pytest.raises(ConfigError, match="batch_size"):
        dense_recipe(3, batch_size=0)
