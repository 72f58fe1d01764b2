"""The lock holds a version of everything for every Python that we support, and it is what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
EXTRAS = ("wandb", "slurm", "genrec", "peft", "quickstart", "dev")


def locked(python: str) -> dict[str, Version]:
    """The lock's versions for one Python on this machine."""
    found = {}
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for line in (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""}):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            assert requirement.name not in found, f"{line}: two versions for Python {python}"
            found[requirement.name] = Version(pin.version)
    return found


def asked_for(python: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for, extras included, on one Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for text in importlib.metadata.requires("eval-sidecar") or []:
        requirement = Requirement(text)
        for extra in ("", *EXTRAS):
            if requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra}):
                yield requirement
                break


@pytest.fixture
def own_environment() -> None:
    """Skip where Python is not the one that scripts/setup has made with the lock."""
    mode = Path(sys.prefix) / ".setup-mode"
    if not mode.exists() or mode.read_text().strip() != "locked":
        pytest.skip("this environment was not installed from the lock (scripts/setup)")


@pytest.mark.usefixtures("own_environment")
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_a_version_in_range_of_all_that_pyproject_asks_for(python: str) -> None:
    pins = locked(python)
    assert len(pins) > 40
    for requirement in asked_for(python):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in the lock for Python {python}"
        assert requirement.specifier.contains(version), f"{requirement}: the lock has {version}"


@pytest.mark.usefixtures("own_environment")
def test_everything_that_setup_installs_direct_or_not_has_the_version_of_the_lock() -> None:
    pins = locked("{}.{}".format(*sys.version_info[:2]))
    seen: set[str] = set()
    todo = [requirement.name for requirement in asked_for("{}.{}".format(*sys.version_info[:2]))]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that this Python does not get
        assert name in pins, f"{name} {found.version} is installed, and not in the lock"
        # A local version (2.13.0+cpu) is a build of the same release.
        assert Version(found.version).public == str(pins[name]), name
        todo += [
            requirement.name
            for requirement in map(Requirement, found.requires or [])
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    assert len(seen) > 20


def lock_in_a_copy(tmp_path: Path, made: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/lock in a checkout whose uv writes `made`."""
    for folder in ("scripts", "requirements", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "lock", tmp_path / "scripts")
    (tmp_path / "requirements" / "lock.txt").write_text("numpy==1.0\nrich==14.0\ntqdm==4.0\n")
    (tmp_path / "requirements" / "openwandb.txt").write_text(made)
    uv = tmp_path / ".venv/bin/uv"
    uv.write_text(
        '#!/bin/sh\n[ -n "$MADE" ] || { echo "no solution for torch" >&2; exit 1; }\n'
        'while [ "$1" != --output-file ]; do shift; done\nprintf "%s" "$MADE" >"$2"\n'
    )
    uv.chmod(0o755)
    environment = {**os.environ, "MADE": made}
    command = [sys.executable, str(tmp_path / "scripts" / "lock")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_lock_says_what_moved_and_what_is_new_or_gone(tmp_path: Path) -> None:
    made = "numpy==1.0\nrich==15.0 ; python_full_version >= '3.10'\nuv==0.1\n"
    done = lock_in_a_copy(tmp_path, made)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "lock: requirements/lock.txt: 3 moved",
        "  rich: 14.0 -> 15.0 (python_full_version >= '3.10')",
        "  tqdm: 4.0 -> none",
        "  uv: none -> 0.1",
        "lock: requirements/openwandb.txt: nothing moved",
    ]
    assert (tmp_path / "requirements" / "lock.txt").read_text().endswith(made)


def test_a_lock_that_cannot_be_made_leaves_the_old_one_and_says_why(tmp_path: Path) -> None:
    done = lock_in_a_copy(tmp_path, "")
    assert done.returncode == 1
    assert "uv could not make requirements/lock.txt" in done.stderr
    assert "no solution for torch" in done.stderr
    assert (tmp_path / "requirements" / "lock.txt").read_text().startswith("numpy==1.0")
    assert sorted(path.name for path in (tmp_path / "requirements").iterdir()) == [
        "lock.txt",
        "openwandb.txt",
    ]
