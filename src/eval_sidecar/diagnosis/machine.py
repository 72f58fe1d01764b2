"""Folders and Slurm: what the sidecar asks of a file system and of a cluster, tried."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import psutil

from eval_sidecar.checkpoints.space import Amount, Room, as_text
from eval_sidecar.diagnosis.base import Finding, Mark
from eval_sidecar.errors import LockedError, StateError
from eval_sidecar.installation import install_command
from eval_sidecar.system.file_notifications import watch_folders
from eval_sidecar.system.files import held_lock

#: File systems that other machines write too, whose changes are not reported here.
_NETWORK = (
    "nfs",
    "lustre",
    "ceph",
    "beegfs",
    "gpfs",
    "cifs",
    "smb",
    "9p",
    "fuse",
    "glusterfs",
    "afs",
    "virtiofs",
)
#: Seconds within which a change must be reported, and a program of Slurm's must answer.
_NOTICE_SECONDS = 3.0
_TRIES = 10
_SLURM_SECONDS = 15.0


def check_folder(
    folder: Path, floor: Amount, *, needs_locks: bool, link_from: Optional[Path] = None
) -> Finding:
    """Try in a folder what the sidecar does there; leaves nothing behind.

    Args:
        folder: Where files are written. If it is not there, the nearest folder above it is tried.
        floor: Free space below which checkpoints are not kept.
        needs_locks: Whether ledgers are kept here: without locks, they cannot be.
        link_from: A file whose hard link must be possible here; one of our own if there is none.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    name = "folder"
    kind = _file_system(there)
    try:
        room = Room.on_disk_of(there)
        free = f"{folder} ({kind}, {as_text(room.free)} of {as_text(room.total)} free)"
        with tempfile.TemporaryDirectory(prefix=".eval-sidecar-doctor-", dir=there) as scratch:
            problems = _try_in(Path(scratch), link_from)
    except OSError as error:
        return Finding(
            name, Mark.BROKEN, f"{folder} cannot be written: {error.strerror}", "choose another folder"
        )
    if room.lack(floor, 0):
        then = "below --min-free-space, waiting checkpoints are not kept from rotation: make room"
        problems.append(("space to spare", then))
    is_network = kind.startswith(_NETWORK)
    remark = "; what other machines write is noticed by polling" if is_network else ""
    if not problems:
        return Finding(name, Mark.WORKS, f"{free}: hard links, notifications and locks work{remark}")
    is_broken = needs_locks and any(what == "locks" for what, _ in problems)
    missing = ", ".join(what for what, _ in problems)
    advice = "; ".join(then for _, then in problems)
    mark = Mark.BROKEN if is_broken else Mark.LIMITED
    return Finding(name, mark, f"{free}: no {missing}{remark}", advice)


def _try_in(scratch: Path, link_from: Optional[Path]) -> list[tuple[str, str]]:
    """Return what does not work in a folder, each with what follows from it."""
    problems = []
    own = scratch / "file"
    own.write_bytes(b"x")
    try:
        os.link(link_from or own, scratch / "link")
    except OSError as error:
        words = f"({error.strerror}): a checkpoint that rotates away before its evaluation is lost"
        problems.append(("hard links", f"{words}, so keep more of them (save_total_limit)"))
    if not _are_changes_reported(scratch):
        problems.append(("notifications", "new checkpoints are noticed by polling (--poll-interval-seconds)"))
    if not _do_locks_hold(scratch / "lock"):
        problems.append(("locks", "give a --state-dir on a disk that has them (NFS: mounted with locks)"))
    return problems


def _are_changes_reported(folder: Path) -> bool:
    noticed = threading.Event()
    with watch_folders([folder], lambda changed: noticed.set() if changed else None):
        for number in range(_TRIES):  # the watch may be there only after the first of them
            (folder / f"new-{number}").write_bytes(b"")
            if noticed.wait(_NOTICE_SECONDS / _TRIES):
                return True
    return False


def _do_locks_hold(path: Path) -> bool:
    try:
        with held_lock(path, ""), contextlib.ExitStack() as second:
            try:
                second.enter_context(held_lock(path, ""))
            except LockedError:
                return True
            return False
    except StateError:
        return False


def _file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on, such as ext4."""
    place = str(folder.resolve())
    mounts = [part for part in psutil.disk_partitions(all=True) if _is_below(place, part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown file system"


def _is_below(place: str, mountpoint: str) -> bool:
    return mountpoint in ("/", place) or place.startswith(f"{mountpoint}/")


def check_slurm(*, is_needed: bool) -> list[Finding]:
    """Look for Slurm, ask it for its partitions, and look for submitit."""
    bad = Mark.BROKEN if is_needed else Mark.LIMITED
    if shutil.which("sbatch") is None:
        said = "not on this machine: evaluations run here, not as jobs"
        advice = "run this on a login node of the cluster" if is_needed else ""
        return [Finding("Slurm", bad if is_needed else Mark.ABSENT, said, advice)]
    version = _ask(["sbatch", "--version"])
    partitions = _ask(["sinfo", "--noheader", "--format=%P %a"])
    rows = [line.split() for line in partitions.stdout.splitlines()]
    up = [row[0].rstrip("*") for row in rows if row[1:] == ["up"]]
    said = version.stdout.strip() or "sbatch is there"
    if up:
        found = Finding("Slurm", Mark.WORKS, f"{said}, partitions: {', '.join(dict.fromkeys(up))}")
    else:
        words = (partitions.stderr or partitions.stdout).strip().splitlines() or ["no partition is up"]
        why = " ".join(words[-1].split())
        advice = "--launcher slurm will not work from here: is this a login node, and is slurmctld up?"
        found = Finding("Slurm", bad, f"{said}, but no partition answers: {why}", advice)
    if importlib.util.find_spec("submitit") is not None:
        return [found]
    said = "not installed: --launcher slurm needs it"
    return [found, Finding("submitit", bad if is_needed else Mark.ABSENT, said, install_command("slurm"))]


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SLURM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"{command[0]} does not answer within {_SLURM_SECONDS:.0f} s"
    except OSError as error:
        said = f"{command[0]}: {error.strerror}"
    return subprocess.CompletedProcess(command, 1, "", said)
