"""Augmentation: every view is one that could be cut from the padded image, and all of them occur."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from prunus.data import augment, normalize

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # leaves the pixel values as they are


def images(count: int, height: int = 8, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalize_by_hand() -> None:
    batch = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalize(batch, MEAN, STD).flatten().tolist() == pytest.approx([-2.5, 2.0, -1.0], abs=1e-6)
    assert normalize(batch, MEAN, STD).dtype == torch.float32


def test_without_any_change_it_is_normalize() -> None:
    batch = images(5)
    result = augment(batch, generator(), crop_padding=0, flip=False, cutout=0, mean=MEAN, std=STD)
    assert torch.equal(result, normalize(batch, MEAN, STD))


def views(image: torch.Tensor, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every shifted and mirrored view of one image (C, H, W), cut out the slow way."""
    _, height, width = image.shape
    padded = F.pad(image, (padding,) * 4)
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            view = padded[:, top : top + height, left : left + width]
            found[view.numpy().tobytes()] = (top, left, False)
            found[view.flip(2).numpy().tobytes()] = (top, left, True)
    return found


def test_every_shifted_and_mirrored_view_occurs_and_no_other() -> None:
    image = images(1)[0]
    possible = views(image, 2)
    assert len(possible) == 50
    batch = image.expand(2000, -1, -1, -1)
    result = augment(batch, generator(), crop_padding=2, flip=True, cutout=0, **PLAIN).round().to(torch.uint8)
    seen = [possible[view.numpy().tobytes()] for view in result]
    assert set(seen) == set(possible.values())
    assert 900 < sum(mirrored for _, _, mirrored in seen) < 1100


def test_flip_alone_and_crop_alone() -> None:
    batch = images(200)
    flipped = augment(batch, generator(), crop_padding=0, flip=True, cutout=0, **PLAIN).round().to(torch.uint8)
    is_same = (flipped == batch).flatten(1).all(1)
    is_mirror = (flipped == batch.flip(3)).flatten(1).all(1)
    assert (is_same ^ is_mirror).all()
    assert 60 < int(is_same.sum()) < 140
    cropped = augment(batch, generator(), crop_padding=3, flip=False, cutout=0, **PLAIN).round().to(torch.uint8)
    for image, view in zip(batch, cropped, strict=True):
        assert not views(image, 3)[view.numpy().tobytes()][2]


def test_cutout_is_one_square_of_the_mean_colour() -> None:
    batch = images(500, 9, 9)
    plain = normalize(batch, MEAN, STD) + 10  # no value is 0 by chance
    shifted = tuple(mean - 10 * std for mean, std in zip(MEAN, STD, strict=True))
    result = augment(batch, generator(), crop_padding=0, flip=False, cutout=3, mean=shifted, std=STD)
    sizes = set()
    for before, after in zip(plain, result, strict=True):
        hole = (after == 0).all(0)
        assert torch.equal((after == 0).any(0), hole)
        assert torch.allclose(after[:, ~hole], before[:, ~hole], atol=1e-4)
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None, :])
        for line in (rows, columns):
            inside = torch.nonzero(line).flatten()
            assert int(inside[-1] - inside[0]) + 1 == len(inside)
        sizes.add((int(rows.sum()), int(columns.sum())))
    assert sizes == {(height, width) for height in (2, 3) for width in (2, 3)}


def test_the_generator_alone_decides() -> None:
    batch = images(64)
    options = {"crop_padding": 2, "flip": True, "cutout": 3, "mean": MEAN, "std": STD}
    torch.manual_seed(1)
    first = augment(batch, generator(5), **options)
    torch.manual_seed(2)
    assert torch.equal(first, augment(batch, generator(5), **options))
    assert not torch.equal(first, augment(batch, generator(6), **options))
    before = torch.get_rng_state()
    augment(batch, generator(5), **options)
    assert torch.equal(before, torch.get_rng_state())


def test_the_batch_is_not_changed() -> None:
    batch = images(16)
    copy = batch.clone()
    augment(batch, generator(), crop_padding=2, flip=True, cutout=3, mean=MEAN, std=STD)
    assert torch.equal(batch, copy)


def test_it_is_fast() -> None:
    """An epoch of 45,000 images in about 0.5 s on one core; a busy machine is given ten times that."""
    batch = images(128, 32, 32)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        augment(batch, generator(), crop_padding=4, flip=True, cutout=8, mean=MEAN, std=STD)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) * 45_000 / 128 < 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cpu_generator_gives_the_same_views_on_a_gpu() -> None:
    batch = images(64)
    options = {"crop_padding": 2, "flip": True, "cutout": 3, "mean": MEAN, "std": STD}
    on_gpu = augment(batch.cuda(), generator(5), **options)
    assert on_gpu.is_cuda
    assert torch.allclose(on_gpu.cpu(), augment(batch, generator(5), **options), atol=1e-5)
    augment(batch.cuda(), torch.Generator("cuda").manual_seed(0), **options)
