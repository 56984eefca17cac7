"""A network from its name: one of the zoo, of timm, of torchvision, or what a function of the user's returns.

Weights are random, and nothing is downloaded. `find_network` only looks the name up, so that many names can be checked
before the first network is built; `Source.load` builds it and finds inputs that it runs on.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.errors import ModelError
from prunus.models.registry import MODELS, build_model

BATCH = 2
"""Examples in the inputs: BatchNorm needs two to train where a map has shrunk to one position."""

_SIDES = (64, 96, 128, 160, 192, 224, 256, 299, 384)  # of the images that are tried, smallest first
_FLOW_SIDES = (128, 256)
_CLIPS = ((8, 64), (16, 64), (16, 112), (16, 224))  # frames and side
_HOW = (
    'a MODEL is a name of the zoo ("resnet20"), "timm:NAME", "torchvision:NAME" or "package.module:factory", where '
    "factory() returns a module, or a module and its example inputs"
)

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Network:
    """A network and inputs that it runs on: `inputs` are the arguments of its forward."""

    spec: str
    model: nn.Module
    inputs: Arguments


@dataclass(frozen=True)
class Source:
    """A name that was found; `build` makes the network and the inputs to try, likeliest or smallest first."""

    spec: str
    build: Callable[[], tuple[nn.Module, Iterable[Arguments]]]

    def load(self) -> Network:
        """Build the network and take the first inputs that it runs on, in both modes if there are such.

        Raises:
            ModelError: it cannot be built, or runs on none of the inputs.
        """
        with _from_here(), _quietly():
            model, candidates = self.build()
            return Network(self.spec, model, _first_that_runs(self.spec, model, candidates))


def find_network(spec: str) -> Source:
    """Look a network up by its name, without building it.

    Args:
        spec: a key of MODELS, ``"timm:NAME"``, ``"torchvision:NAME"``, or ``"package.module:factory"`` where the module
            may lie in the current folder (``"folder/file.py:factory"`` does as well).

    Raises:
        ModelError: there is no such network, or the library that it comes from is not installed.
    """
    library, colon, name = spec.partition(":")
    if not colon:
        return _find_in_zoo(spec)
    with _from_here(), _quietly():
        if library == "timm":
            return _find_in_timm(spec, name)
        if library == "torchvision":
            return _find_in_torchvision(spec, name)
        return _find_in_python(spec)


def load_network(spec: str) -> Network:
    """Build a network by its name, with random weights, and find example inputs: `find_network(spec).load()`."""
    return find_network(spec).load()


def _find_in_zoo(name: str) -> Source:
    if name not in MODELS:
        raise ModelError(f"There is no model named {name!r}.{_near(name, MODELS)} For all: {_HOW}.")
    return Source(name, lambda: (build_model(name), [(_image(32),)]))


def _find_in_timm(spec: str, name: str) -> Source:
    _import_torchvision(spec)
    timm = _import_library(spec, "timm")
    if not timm.is_model(name):
        raise ModelError(f"timm {timm.__version__} has no model named {name!r}.{_near(name, timm.list_models())}")

    def build() -> tuple[nn.Module, list[Arguments]]:
        # Heads that only training runs are part of the network, and off by default in this one.
        extra = {"aux_logits": True} if name.partition(".")[0] == "inception_v3" else {}
        model: nn.Module = timm.create_model(name, pretrained=False, **extra)
        config: Any = model.default_cfg
        channels, *default = config.get("input_size") or (3, 224, 224)
        sides = [side for side in _SIDES if side < min(default)]
        return model, [
            *((_image(side, channels=channels),) for side in sides),
            (torch.rand(BATCH, channels, *default),),
        ]

    return Source(spec, build)


def _find_in_torchvision(spec: str, name: str) -> Source:
    models = _import_torchvision(spec).models
    known = models.list_models()
    if name not in known:
        raise ModelError(f"torchvision has no model named {name!r}.{_near(name, known)}")
    builder = models.get_model_builder(name)
    # Whatever is not said here would be filled in, some of it by a download; heads that only training runs are on.
    settings = {"weights": None, "weights_backbone": None, "aux_loss": True}
    settings = {key: value for key, value in settings.items() if key in inspect.signature(builder).parameters}
    if name in {"googlenet", "inception_v3"}:
        settings |= {"aux_logits": True, "init_weights": False}

    def build() -> tuple[nn.Module, list[Arguments]]:
        model: nn.Module = builder(**settings)
        kind = builder.__module__.split(".")[2]
        if kind == "detection":  # the rest sorts boxes, one image at a time, and holds no channels
            return model.get_submodule("backbone"), [(_image(side),) for side in _SIDES]
        if kind == "video":
            return model, [(torch.rand(BATCH, 3, frames, side, side),) for frames, side in _CLIPS]
        if kind == "optical_flow":
            return model, [(_image(side), _image(side)) for side in _FLOW_SIDES]
        return model, [(_image(side),) for side in _SIDES]

    return Source(spec, build)


def _find_in_python(spec: str) -> Source:
    where, _, name = spec.rpartition(":")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{spec}: cannot import {where!r}: {_said(error)}. For all: {_HOW}.") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{spec}: {where} has no function {name!r}.{_near(name, names)}")

    def build() -> tuple[nn.Module, Iterable[Arguments]]:
        try:
            made = factory()
        except Exception as error:
            raise ModelError(f"{spec}: {name}() raised {_said(error)}") from error
        model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"{spec} returns {type(model).__name__}, not a torch.nn.Module or a module and its example inputs."
            )
        if inputs is None:
            return model, [(_image(side),) for side in (32, *_SIDES)]
        return model, [tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)]

    return Source(spec, build)


def _first_that_runs(spec: str, model: nn.Module, candidates: Iterable[Arguments]) -> Arguments:
    """Return the first inputs that the model takes in both modes, or else in evaluation mode alone."""
    evaluated: Arguments | None = None
    failures: list[str] = []
    for inputs in candidates:
        # Training last: what some modules compute once in evaluation mode and keep, they drop then.
        for training in (False, True):
            try:
                _try(model, inputs, training=training)
            except Exception as error:
                failures.append(f"{_shapes(inputs)}: {_said(error)}")
                break
            if training:
                return inputs
            evaluated = inputs if evaluated is None else evaluated
    if evaluated is None:
        raise ModelError(
            f"{spec} runs on none of the inputs that were tried ({'; '.join(failures[-3:])}). A factory may return its "
            "example inputs beside the module: return model, (torch.rand(2, 1, 28, 28),)"
        )
    return evaluated


def _try(model: nn.Module, inputs: Arguments, *, training: bool) -> None:
    """Run a model once and leave its modes, its buffers and the random state as they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            functional_call(model, buffers, inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _import_torchvision(spec: str) -> ModuleType:
    """Import torchvision, also a build whose compiled part does not load beside this build of torch.

    Its Python part then asks for operators that nobody defined, to say what shapes they return, and fails. No network
    uses them before boxes are sorted; so it is enough to say that they are there.
    """
    try:
        return _import_library(spec, "torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ModelError(f"{spec} needs torchvision, which cannot be imported: {_said(error)}") from error
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    try:
        return _import_library(spec, "torchvision")
    except RuntimeError as error:
        raise ModelError(f"{spec} needs torchvision, which cannot be imported: {_said(error)}") from error


def _import_library(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise ModelError(f"{spec} needs {name}, which is not installed: pip install 'prunus[timm]'") from None
        raise ModelError(f"{spec} needs {name}, which cannot be imported: {_said(error)}") from error


def _import_file(path: Path) -> ModuleType:
    name = path.stem
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@contextmanager
def _from_here() -> Iterator[None]:
    """Let modules of the current folder be imported, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep other libraries' warnings to their developers from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _image(side: int, channels: int = 3) -> Tensor:
    return torch.rand(BATCH, channels, side, side)


def _shapes(inputs: Arguments) -> str:
    return ", ".join("×".join(map(str, leaf.shape)) for leaf in inputs if isinstance(leaf, Tensor))


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
