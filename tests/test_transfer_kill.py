"""Killed at any moment, packing and unpacking leave each file old or new, and running again finishes."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval_sidecar.errors import BundleError
from eval_sidecar.paths import MANIFEST, ResultPaths
from eval_sidecar.transfer import arriving, staging
from transfer_files import NOW, TREE, bring, bundle, make, metrics, read_tree, result, write_tree

SOURCES = Path(__file__).resolve().parents[1] / "src"
OLD = {result(100): metrics(0.7), MANIFEST: b"{}", "gone/x": b"x", "mine": b"mine"}
NEW = {**OLD, **TREE}

#: Calls a function of the package, and kills the process right before or after the nth call of another.
KILLER = """
import os, signal, sys
from pathlib import Path
from eval_sidecar.transfer import Found, PackPlan, pack, unpack
owner, name, number, when, verb, *arguments = sys.argv[1:]
target = {"Path": Path, "os": os}[owner]
original, calls = getattr(target, name), []

def deadly(*positional, **named):
    calls.append(1)
    if len(calls) == int(number) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    returned = original(*positional, **named)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return returned

setattr(target, name, deadly)
one, two = map(Path, arguments)
if verb == "unpack":
    unpack(Found((one,), str(one), 0), two, mirror=True, force=True)
else:
    pack(PackPlan(one, one / ".wandb_eval_manifest.json", two))
"""


def kill(owner: str, name: str, number: int, when: str, verb: str, *arguments: Path) -> None:
    """Run it in a process that is killed on the way."""
    words = [owner, name, str(number), when, verb, *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *words],
        env={"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def assert_each_is_old_or_new(root: Path) -> None:
    for name, data in read_tree(root).items():
        assert name.startswith(".unpack") or data in (OLD.get(name), TREE.get(name)), name
    assert all((root / name).exists() for name in OLD.keys() & TREE.keys())


@pytest.fixture
def archive(tmp_path) -> Path:
    return bundle(write_tree(tmp_path / "source"), tmp_path / "out")


@pytest.fixture
def root(tmp_path) -> Path:
    return write_tree(tmp_path / "results", OLD, NOW - 1)


@pytest.mark.parametrize(
    ("owner", "name", "number", "when"),
    [
        ("os", "utime", 3, "after"),  # staging
        ("Path", "replace", 1, "before"),
        ("Path", "replace", 3, "after"),
        ("Path", "replace", 5, "before"),
        ("Path", "unlink", 1, "after"),  # mirroring
        ("Path", "rmdir", 1, "before"),
    ],
)
def test_killed_while_unpacking_each_file_is_old_or_new_and_the_next_time_finishes(
    archive, root, owner, name, number, when
):
    kill(owner, name, number, when, "unpack", archive, root)
    assert_each_is_old_or_new(root)
    bring(archive, root, mirror=True)
    assert read_tree(root) == TREE
    assert not (ResultPaths(root).unpack_staging).exists()


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_rename_that_fails_leaves_each_file_old_or_new_and_the_next_time_finishes(
    archive, root, monkeypatch, number
):
    renaming, calls = Path.replace, []

    def failing(self, target):
        calls.extend([target] if ".unpacked.json" not in str(target) else [])
        if len(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        return renaming(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(
            BundleError, match=rf"cannot be replaced \(Input/output error\); {number - 1} of 5 files"
        ):
            bring(archive, root)
    assert_each_is_old_or_new(root)
    assert not (ResultPaths(root).unpack_staging).exists()
    bring(archive, root)
    assert read_tree(root) == NEW


def test_the_manifest_comes_last(archive, root, monkeypatch):
    renaming, targets = Path.replace, []
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (targets.append(target), renaming(self, target))[1]
    )
    bring(archive, root)
    targets = [target for target in targets if target.name != ".unpacked.json"]
    assert targets[-1] == root / MANIFEST and len(targets) == 5


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_while_staging_changes_nothing(
    archive, root, monkeypatch, number, error
):
    writing, calls = staging.write_staged, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise error
        writing(*arguments)

    monkeypatch.setattr(arriving, "write_staged", failing)
    with pytest.raises(
        (BundleError, KeyboardInterrupt), match=r"^$|No space left on device; nothing was changed"
    ):
        bring(archive, root)
    assert read_tree(root) == OLD


def test_a_disk_that_cannot_be_synced_changes_nothing(archive, root, monkeypatch):
    def failing(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(staging.os, "fsync", failing)
    with pytest.raises(BundleError, match="Input/output error"):
        bring(archive, root)
    assert read_tree(root) == OLD


def test_many_files_are_synced_at_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(staging.os, "sync", lambda: calls.append(1))
    source = write_tree(tmp_path / "source", {result(step): b"{}" for step in range(1, 120)})
    bring(bundle(source, tmp_path / "out"), tmp_path / "there")
    assert len(calls) == 2 and len(read_tree(tmp_path / "there")) == 119


@pytest.mark.parametrize(("owner", "name"), [("Path", "replace"), ("os", "fsync")])
def test_killed_while_packing_there_is_the_old_archive_or_none(tmp_path, owner, name):
    source = write_tree(tmp_path / "source")
    out = tmp_path / "out"
    out.mkdir()
    kill(owner, name, 1, "before", "pack", source, out)
    assert list(out.glob("result*")) == []
    again = bundle(source, out)
    before = again.read_bytes()
    kill(owner, name, 1, "before", "pack", source, out)
    assert again.read_bytes() == before
    assert make(source, tmp_path / "fresh").archive[0].read_bytes() == before
