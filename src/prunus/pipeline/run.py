"""What the stages of one run share: its settings, its folder, its data and how images become inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from prunus.config import RunConfig
from prunus.data import ImageData, Split, augment, load_data, normalize
from prunus.deploy import Int8Simulation, load, save
from prunus.errors import ConfigError
from prunus.models import build_model
from prunus.pipeline.run_folder import RunFolder
from prunus.pipeline.tracking import Track, no_track
from prunus.stopping import Stopping
from prunus.training import Hook, Recipe, fit
from prunus.training.team import ALONE, Team

_PROOF_IMAGES = 8


@dataclass(frozen=True)
class Run:
    """One run's settings, folder, device, data, the console it talks on, what may stop it, and who trains with it."""

    config: RunConfig
    folder: RunFolder
    device: torch.device
    data: ImageData
    split: Split
    console: Console
    stopping: Stopping
    team: Team = ALONE
    track: Track = no_track

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.data.train_images.shape[1:]
        return channels, height, width

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """Turn uint8 images into what the network takes."""
        return functools.partial(normalize, mean=self.data.mean, std=self.data.std)

    @property
    def identity(self) -> dict[str, Any]:
        """What a model file of this run says beside its tensors and its plan: keywords of `prunus.save`."""
        return {
            "model_name": self.config.model,
            "num_classes": len(self.data.classes),
            "in_channels": self.input_shape[0],
            "input_shape": self.input_shape,
            "classes": self.data.classes,
            "mean": self.data.mean,
            "std": self.data.std,
        }

    def build(self) -> nn.Module:
        """Build the dense network, with initial weights that the seed decides."""
        torch.manual_seed(self.config.seed)
        return build_model(self.config.model, num_classes=len(self.data.classes), in_channels=self.input_shape[0])

    def proof_inputs(self) -> Tensor:
        """Return a few held-out images as the network takes them, (N, C, H, W) on the CPU."""
        return self.normalize(self.split.val_images[:_PROOF_IMAGES])

    def calibration(self) -> Tensor:
        """Return the calibration images: training images, without augmentation or labels; (N, C, H, W), CPU."""
        return self.normalize(self.split.train_images[self._chosen(self.config.calibration_images)])

    def labelled_calibration(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the same images in batches with their labels, (N,), for criteria that look at gradients."""
        count = self.config.calibration_images
        # In an order of its own: a folder's images lie class by class, and batches of one class say little.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.config.seed))
        chosen = self._chosen(count)
        chosen = chosen[order[order < len(chosen)]]
        labels = self.split.train_labels[chosen].split(batch_size)
        return list(zip(self.normalize(self.split.train_images[chosen]).split(batch_size), labels, strict=True))

    def _chosen(self, count: int) -> Tensor:
        """Return the numbers of at most so many training images, spread evenly over them."""
        return torch.linspace(0, len(self.split.train_images) - 1, min(count, len(self.split.train_images))).long()

    def train(self, model: nn.Module, recipe: Recipe, stage: str, hook: Hook | None = None, offset: int = 0) -> None:
        """Train with the run's data, and record every epoch.

        The rounds of an iterative schedule are one stage in the metrics, search; `offset` counts the epochs before.
        Where the recipe distils, the dense network is the teacher. Other processes are told, and train along.
        """
        if self.team.size > 1:
            simulated = isinstance(model, Int8Simulation)
            network = model.network if isinstance(model, Int8Simulation) else model
            save(network, self.folder.shared, **self.identity)
            kind = type(hook).__name__ if hook else None
            self.team.tell({"recipe": dataclasses.asdict(recipe), "stage": stage, "hook": kind, "int8": simulated})

        def record(row: dict[str, Any]) -> None:
            in_rounds = {"stage": "search", "epoch": row["epoch"] + offset, "round": stage.removeprefix("round-")}
            named = row | in_rounds if stage.startswith("round-") else row
            self.folder.record(named)
            self.track(named)

        with self.stopping.postponed() if self.team.size > 1 else contextlib.nullcontext():
            self.fit(model, recipe, stage, hook, record)
        self.folder.shared.unlink(missing_ok=True)
        model.cpu()

    def fit(
        self,
        model: nn.Module,
        recipe: Recipe,
        stage: str,
        hook: Hook | None = None,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        """Train with the run's data, as every process of the run does; branches that were dropped stay silent."""
        with _frozen(model, {name for row in self.folder.read_branches() for name in row["parameters"]}):
            fit(
                model,
                self.split,
                recipe,
                augment=functools.partial(
                    augment,
                    crop_padding=recipe.crop_padding,
                    flip=recipe.flip,
                    cutout=recipe.cutout,
                    mean=self.data.mean,
                    std=self.data.std,
                ),
                normalize=self.normalize,
                stage=stage,
                seed=self.config.seed,
                checkpoint_dir=self.folder.checkpoints,
                device=self.device,
                hook=hook,
                teacher=load(self.folder.dense) if recipe.distill else None,
                on_epoch=on_epoch,
                stopping=self.stopping,
                compile=self.config.compile,
                team=self.team,
            )

    def say(self, text: str) -> None:
        """Tell the user what happens."""
        self.console.print(text, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _frozen(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Take the gradients of these parameters away for a while; those of a simulation are its network's."""
    network = model.network if isinstance(model, Int8Simulation) else model
    frozen = [tensor for name, tensor in network.named_parameters() if name in names and tensor.requires_grad]
    for tensor in frozen:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(True)


def prepare(
    config: RunConfig,
    folder: RunFolder,
    device: torch.device,
    console: Console,
    stopping: Stopping,
    team: Team = ALONE,
) -> Run:
    """Load the data and hold part of it out; the seed, or the split's own, decides which."""
    data = load_images(config)
    split = data.split(config.validation, config.seed if config.split_seed is None else config.split_seed)
    run = Run(config, folder, device, data, split, console, stopping, team)
    skipped = f", {data.skipped} skipped" if data.skipped else ""
    run.say(
        f"data       {data.name}: {len(run.split.train_labels):,} training, {len(run.split.val_labels):,} validation, "
        f"{len(data.test_labels):,} test images of {'×'.join(map(str, run.input_shape))}, "
        f"{len(data.classes)} classes{skipped}"
    )
    return run


def load_images(config: RunConfig) -> ImageData:
    """Load the data set that a configuration names."""
    return load_data(
        config.data,
        cache_dir=config.cache_dir,
        image_size=config.image_size,
        skip_bad_images=config.skip_bad_images,
        memory_bytes=None if config.image_memory is None else 1e9 * config.image_memory,
    )


def choose_device(name: str) -> torch.device:
    """Turn the flag into a device; ConfigError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, True):
        raise ConfigError(f"--device {name}: this machine has no such device; type --device cpu or --device auto")
    return device
