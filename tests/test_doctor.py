"""`prunus doctor`: what is there, what is missing and how to get it, and exit code 1 for what is needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.deploy.formats import litert
from prunus.doctor import Finding, examine


def prunus_command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def named(findings: Sequence[Finding], section: str, name: str) -> Finding:
    (found,) = [finding for finding in findings if (finding.section, finding.name) == (section, name)]
    return found


REQUIRED = ["torch<99", "rich>=900", "no-such-package>=1", 'timm>=1; extra == "nets"', 'pytest; extra == "test"']


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a package asks for is data of the installation, which a test cannot change otherwise.
    required = [
        *REQUIRED,
        'absent-one; extra == "test"',
        'prunus[nets]; extra == "test"',
        'windows-only; sys_platform == "x"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: required)
    real = metadata.metadata("prunus")
    del real["Provides-Extra"]
    for extra in ("nets", "test"):
        real["Provides-Extra"] = extra
    monkeypatch.setattr(metadata, "metadata", lambda _: real)


def test_this_installation_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "not" / "yet"))
    found = examine()
    assert [finding for finding in found if finding.state == "broken"] == []
    assert named(found, "versions", "torch").text == metadata.version("torch")
    assert torch.backends.cpu.get_cpu_capability() in named(found, "devices", "cpu").text
    cache = named(found, "folders", "cache")
    assert (
        str(tmp_path / "not" / "yet") in cache.text
        and "made when it is needed" in cache.text
        and "GB free" in cache.text
    )
    assert not (tmp_path / "not").exists(), "it only looks"
    assert {finding.name for finding in found if finding.section == "data sets"} == {"digits", "cifar10", "cifar100"}


@pytest.mark.usefixtures("requirements")
def test_missing_and_old_packages_and_the_command_that_brings_them() -> None:
    found = examine()
    assert named(found, "versions", "torch").state == "ok"
    assert named(found, "versions", "no-such-package") == Finding(
        "versions", "no-such-package", "broken", "not installed", "pip install 'no-such-package>=1'"
    )
    old = named(found, "versions", "rich")
    assert old.state == "broken" and old.text == f"{metadata.version('rich')}, needed is >=900"
    assert named(found, "extras", "nets").text == f"timm {metadata.version('timm')}"
    assert named(found, "extras", "test") == Finding(
        "extras", "test", "missing", "without absent-one", "pip install 'prunus[test]'"
    )
    assert "windows-only" not in str(found)


@pytest.mark.usefixtures("requirements")
def test_what_is_broken_ends_with_exit_code_1_and_quiet_shows_only_that() -> None:
    result = prunus_command("doctor", "--quiet")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "versions",
        f"  ✗ rich: {metadata.version('rich')}, needed is >=900",
        "      pip install 'rich>=900'",
        "  ✗ no-such-package: not installed",
        "      pip install 'no-such-package>=1'",
    ]


def test_folders_that_cannot_be_written_to_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "file" / "cache"))
    cache = named(examine(), "folders", "cache")
    assert cache.state == "broken" and "cannot be written to: Not a directory" in cache.text
    assert cache.fix.startswith("export PRUNUS_CACHE=")


def test_data_sets_are_found_where_they_would_be_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert named(examine(), "data sets", "cifar10").state == "note"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert named(examine(), "data sets", "cifar10") == Finding(
        "data sets", "cifar10", "ok", str(tmp_path / "cifar-10-batches-py")
    )


def test_the_command_speaks_to_people_and_to_programs() -> None:
    text = prunus_command("doctor")
    assert text.exit_code == 0 and text.stderr == ""
    assert f"  ✓ prunus: {prunus.__version__}, " in text.stdout and "all that Prunus needs is there" in text.stdout
    rows = json.loads(prunus_command("doctor", "--json").stdout)
    assert {row["section"] for row in rows} == {"versions", "extras", "programs", "devices", "folders", "data sets"}
    assert "  ✓ numpy: " in prunus_command("doctor", "--verbose").stdout and "  ✓ numpy: " not in text.stdout


def test_programs_that_pip_does_not_bring_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PRUNUS_LITERT_PYTHON", raising=False)
    monkeypatch.setattr(litert, "find_spec", lambda _: None)
    found = examine()
    missing = named(found, "programs", "litert converter")
    assert missing.state == "missing" and "litert/bin/pip install litert-torch" in missing.fix
    browser = named(found, "programs", "chromium")
    assert (browser.state, browser.fix) == ("missing", "apt-get install chromium")
    for name in ("chromium", "python"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PRUNUS_LITERT_PYTHON", str(tmp_path / "python"))
    found = examine()
    assert named(found, "programs", "litert converter").text == str(tmp_path / "python")
    assert named(found, "programs", "chromium") == Finding("programs", "chromium", "ok", str(tmp_path / "chromium"))
