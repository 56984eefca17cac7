"""Can Prunus prune this network, and is the result right? One row of plain data a network, also for those that fail.

The network is built with random weights, its normalisation is given values that no wrong slice survives, every group
loses the same fraction of its channels, and the result is proven, measured on its own tensors and run in training mode.
"""

from __future__ import annotations

import gc
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.api import PruneResult, prune
from prunus.cost import Cost
from prunus.errors import ConfigError, PrunusError, VerificationError
from prunus.files import read_bytes
from prunus.graph.channels import Freeze
from prunus.models import MODELS, Network, find_network
from prunus.verify import TOLERANCE, Verification

if TYPE_CHECKING:
    from prunus.models import Source

Verdict = Literal["exact", "approximate", "failed"]

_LONGEST = 400  # characters of a reason


class FrozenChannels(BaseModel):
    """Channels that were kept whole for one reason: `count` such places, the first of them along `tensor`.

    `channels` is their number over all places, `op` the operation and `where` the line that asked for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    count: int
    channels: int
    op: str
    where: str
    reason: str


class CheckRow(BaseModel):
    """What came of one network.

    ``"exact"``: the pruned network equals the reference within 1e-10 relative, in float64. ``"approximate"``: it passed
    within a wider tolerance only; `reason` names the operations. ``"failed"``: `reason` says why, and figures that were
    not reached are None. `mixing` names the operations that take statistics over channels, in the reference over the
    kept ones alone. Parameters are counted on the two networks, MACs are those of one example. `largest` is the tensor
    with most of the pruned network's parameters, `largest_params` their number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    verdict: Verdict
    reason: str = ""
    ratio: float
    input_shapes: tuple[tuple[int, ...], ...] = ()
    params_before: int | None = None
    params_after: int | None = None
    largest: str = ""
    largest_params: int | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    max_relative_error: float | None = None
    mixing: tuple[str, ...] = ()
    seconds: dict[str, float] = {}
    frozen: tuple[FrozenChannels, ...] = ()


def check_model(spec: str | Source, ratio: float = 0.5, *, seed: int = 0) -> CheckRow:
    """Prune a network by name and say what came of it; whatever goes wrong becomes a row too.

    Args:
        spec: what `prunus.models.find_network` takes or returned.
        ratio: the fraction of every group's channels to remove, in [0, 1).
        seed: of the weights, the statistics and the inputs; the random state is left as it was.
    """
    name = spec if isinstance(spec, str) else spec.spec
    # The text of an exception is taken at once: its traceback would hold the network in memory.
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            row = _check(find_network(spec) if isinstance(spec, str) else spec, ratio, seed)
    except Exception as error:
        row = CheckRow(spec=name, verdict="failed", reason=_why(error), ratio=ratio)
    gc.collect()
    return row


def zoo_specs() -> list[str]:
    """Return the names of the whole zoo."""
    return list(MODELS)


def read_specs(path: str | Path) -> list[str]:
    """Read names of networks from a file: one a line; empty lines and what follows a # do not count.

    Raises:
        FileFormatError: there is no such file.
        ConfigError: it names no network.
    """
    text = read_bytes(path, "list of networks").decode("utf-8", errors="replace")
    specs = [line.partition("#")[0].strip() for line in text.splitlines()]
    if not any(specs):
        raise ConfigError(f"{path} names no network; write one a line, such as timm:resnet18")
    return list(dict.fromkeys(spec for spec in specs if spec))


def randomise(model: nn.Module, inputs: tuple[object, ...], seed: int = 0) -> bool:
    """Give a network values with which a wrong slice shows, and with which numbers neither vanish nor overflow.

    What runs along one axis, scales such as LayerScale's included, is drawn away from 0 and 1, and weights that start
    as a constant are drawn too. Running statistics become those of the inputs, each then moved at random. Returns
    whether the network runs in training mode.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float) -> Tensor:
        return torch.rand(tensor.shape, generator=generator).to(tensor) + low

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if sum(length > 1 for length in parameter.shape) <= 1:
                parameter.copy_(draw(parameter, -0.5 if name.endswith(("bias", "beta")) else 0.5))
            elif bool((parameter == parameter.flatten()[0]).all()):
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator).to(parameter) / fan_in**0.5)
        trains = _settle_statistics(model, inputs)
        buffers = dict(model.named_buffers())
        for name, variance in buffers.items():
            if name.endswith("running_var") and variance.numel():
                # A channel that was silent on this batch must not be blown up, nor a quiet layer drowned.
                variance.add_(0.05 * variance.mean() + 1e-12).mul_(draw(variance, 0.5))
                mean = buffers.get(f"{name.removesuffix('var')}mean")
                if mean is not None:
                    mean.add_(draw(mean, -0.5) * variance.sqrt())
    return trains


def _settle_statistics(model: nn.Module, inputs: tuple[object, ...]) -> bool:
    """Run once in training mode with all weight on this batch; False if the network does not run so."""
    modes = {module: module.training for module in model.modules()}
    momenta = {
        module: module.momentum
        for module in model.modules()
        if isinstance(getattr(module, "running_var", None), Tensor) and hasattr(module, "momentum")
    }
    for module in momenta:
        module.momentum = 1.0  # type: ignore[assignment]  # torch calls every attribute of a module a tensor or module
    model.train()
    try:
        model(*inputs)
    except Exception:
        return False
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return True


def _check(source: Source, ratio: float, seed: int) -> CheckRow:
    start = time.perf_counter()
    network = source.load()
    trains = randomise(network.model, network.inputs, seed)
    before = _fingerprint(network.model)
    shapes = tuple(tuple(leaf.shape) for leaf in network.inputs if isinstance(leaf, Tensor))
    params = _count_parameters(network.model)
    seconds = {"load": time.perf_counter() - start}
    known = {"spec": source.spec, "ratio": ratio, "input_shapes": shapes, "params_before": params, "seconds": seconds}
    try:
        result = prune(
            network.model,
            network.inputs,
            pruning_ratio=ratio,
            criterion="l1_norm",
            scope="local",
            min_channels=1,
        )
        problem = _first_problem(network, result, before, trains)
    except Exception as error:
        return CheckRow.model_validate({**known, "verdict": "failed", "reason": _why(error)})
    verdict, reason = judge(result.verification)
    if problem:
        verdict, reason = "failed", problem
    return CheckRow.model_validate(
        {
            **known,
            "verdict": verdict,
            "reason": reason,
            "params_after": _count_parameters(result.model),
            **_largest(result.model),
            "macs_before": result.plan.before.macs,
            "macs_after": result.plan.after.macs,
            "max_relative_error": _finite(result.verification.max_relative_error),
            "mixing": result.verification.mixing,
            "seconds": {**seconds, **result.seconds},
            "frozen": group_frozen(result.graph.frozen),
        }
    )


def _largest(model: nn.Module) -> dict[str, object]:
    name, parameter = max(model.named_parameters(), key=lambda item: item[1].numel())
    return {"largest": name, "largest_params": parameter.numel()}


def judge(verification: Verification) -> tuple[Verdict, str]:
    """Turn a proof into a verdict and its reason."""
    if not verification.passed:
        return "failed", verification.failure or "the verification did not pass"
    if verification.dtype == "float64" and verification.max_relative_error <= TOLERANCE:
        return "exact", ""
    which = ", ".join(verification.mixing) or "no operation is known to mix channels"
    return "approximate", f"{which}: within {verification.tolerance:.0e} in {verification.dtype} only"


def group_frozen(frozen: Iterable[Freeze]) -> tuple[FrozenChannels, ...]:
    """Make one of all places that were kept whole by the same operation, line and reason; most channels first."""
    groups: dict[tuple[str, str, str], list[Freeze]] = {}
    for freeze in frozen:
        groups.setdefault((freeze.op, _short(freeze.where), freeze.reason), []).append(freeze)
    rows = [
        FrozenChannels(
            tensor=places[0].tensor,
            count=len(places),
            channels=sum(place.channels for place in places),
            op=op,
            where=where,
            reason=_short(reason),
        )
        for (op, where, reason), places in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.channels))


def _first_problem(network: Network, result: PruneResult, before: object, trains: bool) -> str:
    """Look for what the proof does not cover; the empty string if all is well."""
    if _fingerprint(network.model) != before:
        return "the original was changed: its weights, its modes or the random state"
    for which, model, cost in (
        ("original", network.model, result.plan.before),
        ("pruned network", result.model, result.plan.after),
    ):
        problem = _cost_problem(which, model, cost)
        if problem:
            return problem
    problem = _shape_problem(network.model.state_dict(), result.model.state_dict())
    if problem:
        return problem
    return _training_problem(network, result.model) if trains else ""


def _cost_problem(which: str, model: nn.Module, cost: Cost) -> str:
    params, size = _count_parameters(model), _state_bytes(model)
    if params != cost.params:
        return f"the {which} has {params} parameters, and the plan says {cost.params}"
    if size != cost.size_bytes:
        return f"the {which}'s state dict has {size} bytes, and the plan says {cost.size_bytes}"
    return ""


def _shape_problem(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    if list(before) != list(after):
        return f"the pruned network's state dict has other names: {sorted(set(before) ^ set(after))[:3]}"
    for name, old in before.items():
        new = after[name]
        if not isinstance(old, Tensor) or not isinstance(new, Tensor):
            continue
        if old.dim() != new.dim() or any(a < b or not b for a, b in zip(old.shape, new.shape, strict=True) if a):
            return f"{name} went from {tuple(old.shape)} to {tuple(new.shape)}"
    return ""


def _training_problem(network: Network, pruned: nn.Module) -> str:
    try:
        with torch.no_grad():
            expected = _shapes(network.model.train()(*network.inputs))
            found = _shapes(pruned.train()(*network.inputs))
    except Exception as error:
        return f"the pruned network does not run in training mode: {_why(error)}"
    return "" if found == expected else f"in training mode its outputs have shapes {found}, not {expected}"


def _shapes(outputs: object) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _state_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values() if isinstance(tensor, Tensor))


def _fingerprint(model: nn.Module) -> object:
    """Return what must not change: modes, values and the random state."""
    with torch.no_grad():
        values = [
            (name, tuple(tensor.shape), float(tensor.sum(dtype=torch.float64)), float(tensor[(0,) * tensor.dim()]))
            for name, tensor in model.state_dict().items()
            if isinstance(tensor, Tensor) and tensor.numel() and not tensor.is_complex()
        ]
    return values, [module.training for module in model.modules()], torch.get_rng_state().tolist()


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def _why(error: BaseException) -> str:
    """Write an exception on one line; those that Prunus raises on purpose speak for themselves."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, VerificationError):
        text = f"VerificationError: {text}"
    elif not isinstance(error, PrunusError):
        text = f"{type(error).__name__}: {text}"
    text = _short(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _short(text: str) -> str:
    """Leave out where on this machine the packages and the current folder lie."""
    return re.sub(r"/\S*?/site-packages/", "", text).replace(f"{Path.cwd()}/", "")
