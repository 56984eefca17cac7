"""Training: one loop, its recipe, its checkpoints; it knows nothing of pruning, nor of where images come from."""

from __future__ import annotations

from prunus.training.epoch import LabelledImages
from prunus.training.evaluate import evaluate
from prunus.training.hook import Hook
from prunus.training.loop import fit
from prunus.training.recipe import Recipe, dense_recipe, finetune_recipe

__all__ = ["Hook", "LabelledImages", "Recipe", "dense_recipe", "evaluate", "finetune_recipe", "fit"]
