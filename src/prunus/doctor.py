"""What Prunus finds on this computer: versions, extras, devices, folders and data sets, and what to type for the rest.

Nothing here may need what it looks for: torch and the parts that need it are imported inside of the checks.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from prunus.errors import ConfigError

State = Literal["ok", "note", "missing", "broken"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_LOW_BYTES = 2 * 10**9  # of free disk; CIFAR's archive, its decoded images and a run's checkpoints take about 1 GB


@dataclass(frozen=True)
class Finding:
    """One line: `state` is ok, note (worth knowing), missing (optional) or broken (needed); `fix` is what to type."""

    section: str
    name: str
    state: State
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything; a check that fails itself becomes a finding too."""
    found: list[Finding] = []
    for section, check in (
        ("versions", _versions),
        ("extras", _extras),
        ("programs", _programs),
        ("devices", _devices),
        ("folders", _folders),
        ("data sets", _data_sets),
    ):
        try:
            found += check()
        except Exception as error:
            found.append(Finding(section, "the check itself", "broken", f"{type(error).__name__}: {error}"))
    return found


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "prunus", "ok", f"{metadata.version('prunus')}, {Path(__file__).parent}")
    yield Finding("versions", "python", "ok", f"{platform.python_version()}, {sys.executable}")
    for requirement in _requirements(""):
        yield _installed("versions", requirement, "broken", f"pip install '{requirement}'")


def _extras() -> Iterator[Finding]:
    for extra in metadata.metadata("prunus").get_all("Provides-Extra") or ():
        parts = [_installed("extras", requirement, "missing", "") for requirement in _requirements(extra)]
        lacking = [part.name for part in parts if part.state != "ok"]
        command = f"pip install 'prunus[{extra}]'"
        if lacking:
            yield Finding("extras", extra, "missing", f"without {', '.join(lacking)}", command)
        else:
            yield Finding("extras", extra, "ok", ", ".join(f"{part.name} {part.text}" for part in parts))


def _programs() -> Iterator[Finding]:
    """Look for what pip does not bring along."""
    from prunus.deploy.formats import litert

    try:
        yield Finding("programs", "litert converter", "ok", litert.converter())
    except ConfigError as error:
        what, _, command = str(error).partition(": ")
        yield Finding("programs", "litert converter", "missing", what, command)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is not None:
        yield Finding("programs", "chromium", "ok", browser)
    else:
        text = "not on the PATH: the tests that look at pages are skipped"
        yield Finding("programs", "chromium", "missing", text, "apt-get install chromium")


def _requirements(extra: str, seen: frozenset[str] = frozenset()) -> list[Requirement]:
    """Return what Prunus needs, or what one of its extras adds, those that it names in turn too."""
    found = []
    for requirement in map(Requirement, metadata.requires("prunus") or ()):
        marker = requirement.marker
        if marker is None:
            wanted = not extra
        else:
            wanted = marker.evaluate({"extra": extra}) and (not extra or not marker.evaluate({"extra": ""}))
        if not wanted:
            continue
        if requirement.name == "prunus":
            for inner in sorted(requirement.extras - seen):
                found += _requirements(inner, seen | {extra, inner})
        else:
            found.append(requirement)
    return found


def _installed(section: str, requirement: Requirement, otherwise: State, fix: str) -> Finding:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(section, requirement.name, otherwise, "not installed", fix)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(section, requirement.name, "ok", version)
    return Finding(section, requirement.name, otherwise, f"{version}, needed is {requirement.specifier}", fix)


def _devices() -> Iterator[Finding]:
    try:
        import torch

        from prunus.deploy import processor_name

        torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3))
    except (ImportError, OSError, RuntimeError) as error:
        text = f"torch does not run: {type(error).__name__}: {error}"
        yield Finding("devices", "cpu", "broken", text, "pip install --force-reinstall torch")
        return
    what = torch.backends.cpu.get_cpu_capability()
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {what}"
    yield Finding("devices", "cpu", "ok", f"{processor_name('cpu')}, {cores}")
    yield from _gpus()


def _gpus() -> Iterator[Finding]:
    import torch

    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "ok", "Apple GPU")
    if torch.version.cuda is None:
        text = f"torch {torch.__version__} is built without it; networks train and run on the CPU"
        yield Finding("devices", "cuda", "note", text)
    elif not torch.cuda.is_available():
        text = f"torch is built for CUDA {torch.version.cuda}, and finds no GPU: see what nvidia-smi says"
        yield Finding("devices", "cuda", "note", text)
    else:
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            text = f"{torch.cuda.get_device_name(number)}, {_gigabytes(free)} of {_gigabytes(total)} free"
            yield Finding("devices", f"cuda:{number}", "ok", text)


def _folders() -> Iterator[Finding]:
    from prunus.data.cache import default_cache_dir

    places = (
        ("working folder", Path.cwd(), "change to a folder that you may write to"),
        ("cache", default_cache_dir(), "export PRUNUS_CACHE=/a/folder/that/you/may/write/to"),
        ("temporary files", Path(tempfile.gettempdir()), "export TMPDIR=/a/folder/that/you/may/write/to"),
    )
    for name, folder, fix in places:
        yield _folder(name, folder, fix)


def _folder(name: str, folder: Path, fix: str) -> Finding:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):  # the only sure answer: rights, read-only disks and quotas all count
            pass
    except OSError as error:
        return Finding("folders", name, "broken", f"{folder} cannot be written to: {error.strerror or error}", fix)
    free = shutil.disk_usage(there).free
    text = f"{folder}, {_gigabytes(free)} free" + ("" if folder.exists() else ", made when it is needed")
    if free < _LOW_BYTES:
        return Finding("folders", name, "note", f"{text}: little for data sets and runs", fix)
    return Finding("folders", name, "ok", text)


def _data_sets() -> Iterator[Finding]:
    from prunus.data.cache import default_cache_dir
    from prunus.data.download import OFFICIAL

    yield Finding("data sets", "digits", "ok", "comes with Prunus")
    for name, archives in OFFICIAL.items():
        places = [
            folder / part
            for folder in (default_cache_dir(), Path.cwd())
            for archive in archives
            for part in (archive.file, archive.folder)
        ]
        there = next((place for place in places if place.exists()), None)
        if there is not None:
            yield Finding("data sets", name, "ok", str(there))
        else:
            text = f"not here; downloaded when it is needed, or put {archives[0].file} into the cache folder"
            yield Finding("data sets", name, "note", text)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
