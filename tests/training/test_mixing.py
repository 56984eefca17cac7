from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunus.training import Recipe, fit
from prunus.training.mixing import Blend, draw_blend
from tests.training.conftest import Images, augment, make_model, normalize, step_by_step


def test_images_and_targets_are_blended_alike() -> None:
    blend = Blend(torch.tensor([1, 2, 0]), 0.75)
    batch = torch.tensor([0.0, 4.0, 8.0]).view(3, 1, 1, 1)
    assert blend.images(batch).flatten().tolist() == [1.0, 5.0, 6.0]
    assert blend.targets(torch.tensor([0, 1, 1]), 2).tolist() == [[0.75, 0.25], [0.0, 1.0], [0.25, 0.75]]


def test_the_generator_alone_decides() -> None:
    draws = []
    for seed in (3, 3, 4):
        generator = torch.Generator().manual_seed(seed)
        torch.rand(())  # the global generator moves on
        draws.append([draw_blend(6, 0.4, generator, torch.device("cpu")) for _ in range(3)])
    first, again, other = ([(blend.share, blend.order.tolist()) for blend in found] for found in draws)
    assert first == again
    assert first != other
    assert len(set(map(str, first))) == 3
    assert all(sorted(order) == [0, 1, 2, 3, 4, 5] for _, order in first)


def test_shares_follow_the_folded_beta_distribution() -> None:
    """max(b, 1 - b) of b ~ Beta(1, 1), which is uniform, has the mean 3/4; of Beta(50, 50) it lies near 1/2."""
    generator = torch.Generator().manual_seed(0)
    for alpha, mean in ((1.0, 0.75), (50.0, 0.54)):
        shares = [draw_blend(2, alpha, generator, torch.device("cpu")).share for _ in range(2000)]
        assert min(shares) >= 0.5
        assert sum(shares) / len(shares) == pytest.approx(mean, abs=0.01)


def test_a_training_with_mixup_is_another_and_goes_on_with_the_same_bits(images: Images, tmp_path: Path) -> None:
    recipe = Recipe(2, batch_size=16, learning_rate=0.05, mixup=0.4, label_smoothing=0.1)

    def train(folder: Path | None, recipe: Recipe, **changes: object) -> dict[str, torch.Tensor]:
        model = make_model()
        common = {"augment": augment, "normalize": normalize, "checkpoint_dir": folder, "progress": False}
        fit(model, images, recipe, **common, **changes)  # type: ignore[arg-type]
        return model.state_dict()

    whole = train(None, recipe)
    stops, parts = step_by_step(lambda stopping: train(tmp_path, recipe, stopping=stopping))
    assert stops > 5
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    plain = train(None, Recipe(2, batch_size=16, learning_rate=0.05, label_smoothing=0.1))
    assert not torch.equal(plain["0.weight"], whole["0.weight"])


def test_wrong_alpha() -> None:
    with pytest.raises(Exception, match=r"mixup is -0\.1, and must be 0 or more"):
        Recipe(1, mixup=-0.1)
