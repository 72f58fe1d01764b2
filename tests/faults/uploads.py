"""Faults of the upload itself: kills, signals, two at once, and the files below it."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from faults.files import add_results, write_result, write_results
from faults.registry import kind
from faults.world import UPLOADER_STATE, Skip, Started, World

UPLOAD_MOMENTS = ("time", "request", "request", "stream", "stream", "file", "state", "temporary")

#: Puts the clock of a Python process wrong, by a variable; that of the client's own process stays.
_SITE = """
import os, time
_by = float(os.environ.get("FAULT_CLOCK", "0"))
_time = time.time
time.time = lambda: _time() + _by
"""


def slow_down(world: World) -> None:
    """Make the server a little slow, or not: other moments become likely."""
    world.server.set_latency(world.random.choice((0, 0, 20, 60)))


def killed_upload(world: World) -> None:
    """Start an upload and kill it at a random moment, if it does not end before."""
    world.kill_sometime(world.upload(), UPLOAD_MOMENTS)


@kind("kill-upload")
def kill_upload(world: World) -> None:
    """SIGKILL, several times, with more results in between."""
    write_results(world)
    slow_down(world)
    for _ in range(world.random.randint(1, 4)):
        killed_upload(world)
        if world.random.random() < 0.3:
            add_results(world)


@kind("sigterm-upload")
def sigterm_upload(world: World) -> None:
    """SIGTERM, once or twice: the command ends by itself, and leaves nothing running."""
    write_results(world)
    slow_down(world)
    started = world.upload()
    world.random_moment(started, UPLOAD_MOMENTS)
    end_with_sigterm(world, started)


def end_with_sigterm(world: World, started: Started) -> None:
    """Ask a command to end as a service manager does, and see that it leaves nothing behind."""
    has_begun = world.traces() > started.traces
    if started.is_running:
        started.command.signal(signal.SIGTERM)
        world.tell("SIGTERM")
    code = world.wait(started, 60.0)
    if code == -signal.SIGTERM and has_begun and (left := world.left_by(started)):
        world.verdict.count("dishonest", f"ended without a word in the middle of its work: {', '.join(left)}")
    elif code == -signal.SIGTERM:
        world.tell("it did not listen, before its work or after it")  # no promise was broken
    for process in world.repository.processes():
        world.verdict.count("leaked", f"left running after SIGTERM: {process}")


@kind("two-uploaders-one-state")
def two_uploaders_one_state(world: World) -> None:
    """Two uploads at once on one state folder."""
    write_results(world)
    slow_down(world)
    if world.random.random() < 0.6:
        _overlap(world, world.upload, world.upload)
    else:
        _both(world, world.upload, world.upload)


@kind("two-uploaders-two-states")
def two_uploaders_two_states(world: World) -> None:
    """Two uploads at once on two state folders of one user."""
    write_results(world)
    slow_down(world)
    other = functools.partial(world.upload, state="state/other")
    if world.random.random() < 0.6:
        _overlap(world, world.upload, other)
    else:
        _both(world, world.upload, other)
    assert world.wait(other()) is not None


@kind("two-machines")
def two_machines(world: World) -> None:
    """Two uploads at once that share nothing but the server, as on two machines."""
    write_results(world)
    slow_down(world)
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    other = {"TMPDIR": str(elsewhere)}
    there = functools.partial(world.upload, state="state/other", env=other)
    if world.random.random() < 0.6:
        # Not before a session is seen to be open: two that begin in one moment nobody can tell apart.
        _overlap(world, world.upload, there, ("file_stream",))
    else:
        _both(world, world.upload, there)
    assert world.wait(there()) is not None


def _both(world: World, *starts: Callable[[], Started]) -> None:
    begun = []
    for start in starts:
        # The same rows sent twice to the same places would do no harm: let the second know more.
        if begun and world.random.random() < 0.8:
            world.wait_for(lambda: False, begun[-1], world.random.choice((0.8, 1.2, 1.6)))
            add_results(world)
        begun.append(start())
    if world.random.random() < 0.3:
        world.random_moment(begun[0], UPLOAD_MOMENTS)
        if begun[0].is_running:
            world.kill(begun[0], everything=False)
            begun.pop(0)
    for started in begun:
        world.wait(started)


def _overlap(
    world: World,
    first: Callable[[], Started],
    second: Callable[[], Started],
    requests: Sequence[str] = ("RunResumeStatus", "UpsertBucket", "file_stream"),
) -> None:
    """Hold the first in the middle of its sessions until the second, which knows more, has come as far."""
    where = world.random.choice(requests)
    world.server.fault(where, action="hang", times=len(world.models))
    held = first()
    world.wait_for(lambda: world.server.requests[where], held)
    add_results(world)
    seen = world.server.requests[where]
    other = second()
    world.wait_for(lambda: world.server.requests[where] > seen, other, 20)
    world.wait_for(lambda: False, other, world.random.uniform(0, 1))
    world.tell(f"{where} goes on, asked for {world.server.requests[where]} times")
    world.server.heal()
    world.wait(held)
    world.wait(other)


@kind("state-deleted")
def state_deleted(world: World) -> None:
    """The state folder is deleted, after a kill or after a whole upload."""
    write_results(world)
    slow_down(world)
    if world.random.random() < 0.7:
        killed_upload(world)
    else:
        world.wait(world.upload())
    if world.random.random() < 0.5:
        add_results(world)
    shutil.rmtree(world.root / UPLOADER_STATE, ignore_errors=True)
    world.tell("state deleted")


@kind("state-truncated")
def state_truncated(world: World) -> None:
    """State files are cut at any byte, or hold noise."""
    write_results(world)
    if world.random.random() < 0.6:
        killed_upload(world)
    else:
        world.wait(world.upload())
    for path in sorted((world.root / UPLOADER_STATE).glob("*.json")):
        content = path.read_bytes()
        cut = world.random.choice((0, 1, world.random.randrange(len(content)), len(content) - 3))
        path.write_bytes(content[:cut] + (b"\0" * 50 if world.random.random() < 0.2 else b""))
        world.tell(f"{path.name} cut after {cut} of {len(content)} bytes")
    if world.random.random() < 0.5:
        add_results(world)


@kind("clock-set-back")
def clock_set_back(world: World) -> None:
    """The clock is set back, or was ahead before, between two uploads of which the first was killed."""
    set_clock_back(world)
    write_results(world)
    killed_upload(world)
    if world.random.random() < 0.5:
        add_results(world)
    turn_clock_back(world)


def set_clock_back(world: World) -> None:
    """Let every Python of this trial have a clock that the trial can set."""
    folder = world.folder / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE)
    world.repository.extra.update(PYTHONPATH=str(folder), FAULT_CLOCK=str(world.random.choice((0, 7200))))


def turn_clock_back(world: World) -> None:
    """Put the clock of what is started from now on behind the true one."""
    world.repository.extra["FAULT_CLOCK"] = str(-world.random.choice((40, 3600, 86400 * 30)))
    world.tell(f"clock at {world.repository.extra['FAULT_CLOCK']} s")


@kind("disk-full")
def disk_full(world: World) -> None:
    """The disk of the state folder is full for a while (a small tmpfs, for which one has to be root)."""
    write_results(world)
    state = world.root / UPLOADER_STATE
    state.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(state)]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        raise Skip("a tmpfs cannot be mounted here (not root?)")
    try:
        filler = state / "filler"
        for _ in range(world.random.randint(1, 3)):
            _fill(filler, world.random.choice((0, 0, 4, 8, 12, 16, 24)) * 1024)
            started = world.upload()
            if world.random.random() < 0.3:
                world.random_moment(started, UPLOAD_MOMENTS)
                _fill(filler, 0)
            world.wait(started)
            filler.unlink()
            add_results(world)
        world.until_done()
    finally:
        # What was kept there goes with the disk: the upload after this one finds everything on the server.
        subprocess.run(["umount", "-l", str(state)], check=False, capture_output=True)


def _fill(path: Path, leave: int) -> None:
    """Use a disk up, but for so many bytes."""
    try:
        with path.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    with path.open("rb+") as file:
        file.truncate(max(0, path.stat().st_size - leave))


@kind("results-rewritten-during-upload")
def results_rewritten(world: World) -> None:
    """Results change, whole or in place, while uploads run."""
    write_results(world, most_models=2)
    slow_down(world)

    def rewrite(stop: threading.Event) -> None:
        while not stop.wait(world.random.uniform(0.1, 1.0)):
            place = world.random.choice(sorted(world.results()) or [None])
            if place is not None:
                write_result(world, *place, whole=world.random.random() < 0.5)
                world.tell(f"rewrote {place[0]} checkpoint-{place[1]}")

    end = world.in_background(rewrite)
    for _ in range(world.random.randint(1, 3)):
        started = world.upload()
        if world.random.random() < 0.3:
            world.random_moment(started, UPLOAD_MOMENTS)
            world.kill(started)
        else:
            world.wait(started)
    end()
