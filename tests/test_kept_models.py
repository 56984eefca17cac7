"""The pruned networks in models/ are those of the cells in results/ that their cards tell of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import prunus
from prunus.files import read_json
from prunus.pipeline.predicting import predict

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "resnet20_layer_fusion_macs-0.48": "f96a2571",
    "resnet20_refit_error_size-0.64MB": "171aaf42",
    "resnet20_channel_sparsity_size-0.64MB": "5d0818bd",
}


def test_every_folder_is_known_here() -> None:
    assert {path.name for path in (ROOT / "models").iterdir() if path.is_dir()} == set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_kept_network_is_that_of_its_cell_and_its_card(name: str) -> None:
    folder = ROOT / "models" / name
    (cell,) = (ROOT / "results" / "cpu").glob(f"model-*-{FOLDERS[name]}.json")
    summary: dict[str, Any] = read_json(cell)["summary"]
    pruned, dense = summary["pruned"], summary["dense"]
    assert pruned["test_accuracy"] >= dense["test_accuracy"] - 0.005
    kind, budget = name.split("_")[-1].split("-")
    used = {"macs": pruned["macs"] / dense["macs"], "size": pruned["size_bytes"] / 1e6}[kind]
    assert used <= float(budget.removesuffix("MB"))
    model = prunus.load(folder / "model.safetensors").eval()
    cost = prunus.count_cost(model, torch.zeros(1, 3, 32, 32))
    assert (cost.macs, cost.params) == (pruned["macs"], pruned["params"])
    assert (folder / "model.safetensors").stat().st_size == pruned["size_bytes"] < 1_000_000
    assert (folder / "model.int8.onnx").stat().st_size == summary["int8"]["size_bytes"]
    card = (folder / "README.md").read_text("utf-8")
    assert re.search(r"value: (\S+)", card)[1] == str(pruned["test_accuracy"])  # type: ignore[index]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_file_with_8_bit_integers_says_what_the_network_says(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    files = []
    for number in range(16):
        coarse = torch.rand(1, 3, 4, 4, generator=generator)
        pixels = (255 * F.interpolate(coarse, 32, mode="bilinear")[0]).byte().permute(1, 2, 0)
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels.numpy()).save(files[-1])
    floats, integers = (
        predict(ROOT / "models" / name / file, files) for file in ("model.safetensors", "model.int8.onnx")
    )
    tops = [(one.classes[0][0], other.classes[0][0]) for one, other in zip(floats, integers, strict=True)]
    assert sum(one == other for one, other in tops) >= 14, tops
    assert len({one for one, _ in tops}) > 1
