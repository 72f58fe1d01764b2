"""Which process is which (a pid is reused, a pid with its start time is not), and how one is ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import psutil

#: Seconds by which two readings of one process's start time may differ.
_START_TOLERANCE = 1.0
#: How often to look while waiting for processes to end, in seconds.
_LOOK_EVERY = 0.02


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same pid.

    Attributes:
        pid: Process id.
        started: Start time, seconds since the epoch, as the system reports it. Linux computes it from
            the clock, so that it moves when the clock is set.
        since_boot: The boot and the start time within it, which never move; None if the system does not tell.
    """

    pid: int
    started: float
    since_boot: Optional[str] = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for `from_json`."""
        return {"pid": self.pid, "started": self.started, "since_boot": self.since_boot}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ProcessIdentity:
        """Read what `to_json` wrote."""
        return cls(int(value["pid"]), float(value["started"]), value.get("since_boot"))

    @classmethod
    def of(cls, pid: int) -> Optional[ProcessIdentity]:
        """Return the identity of a living process, or None if there is none with this pid."""
        try:
            return cls(pid, psutil.Process(pid).create_time(), _since_boot(pid))
        except psutil.NoSuchProcess:
            return None

    def find(self) -> Optional[psutil.Process]:
        """Return the process, or None if it has ended (a zombie has ended)."""
        try:
            process = psutil.Process(self.pid)
            since_boot = _since_boot(self.pid)
            if self.since_boot is not None and since_boot is not None:
                same = self.since_boot == since_boot
            else:
                same = abs(process.create_time() - self.started) <= _START_TOLERANCE
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def is_running(self) -> bool:
        """Return whether this process still runs."""
        return self.find() is not None


def describe_signal(number: int) -> str:
    """Return a signal's name, and the usual cause of the kernel's SIGKILL."""
    if number == signal.SIGKILL:
        return f"killed by signal {number} (out of memory?)"
    try:
        return f"killed by signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"killed by signal {number}"


def describe_exit(code: Optional[int]) -> Optional[str]:
    """Return how a shell's exit code says that its command was killed; None if it does not.

    128 + the signal's number: POSIX, Shell Command Language, 2.8.2.
    """
    number = (code or 0) - 128
    return describe_signal(number) if number in {int(known) for known in signal.Signals} else None


def this_machine() -> dict[str, Any]:
    """Return this machine as plain JSON, for `machine_elsewhere`."""
    return {"host": socket.gethostname(), "boot": _boot()}


def machine_elsewhere(value: Mapping[str, Any]) -> Optional[str]:
    """Return the name of the machine that wrote a record, or None if it is this one or is not known.

    A machine whose name has changed is still this one if it has not been booted since: a container that is
    created again gets another host name on the same boot.

    Args:
        value: A record that holds what `this_machine` returned. One of an earlier version has no boot of its
            own; the identity of its process names it (`ProcessIdentity.since_boot`).
    """
    here = this_machine()
    boot = value.get("boot") or str(value.get("since_boot") or "").partition(" ")[0]
    if value.get("host") in (None, here["host"]) or (here["boot"] and boot == here["boot"]):
        return None
    return str(value["host"])


def _boot() -> Optional[str]:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _since_boot(pid: int) -> Optional[str]:
    """Return the boot's id and the process's start in ticks after it (proc(5), field 22), on Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = _boot()
        return f"{boot} {fields[19]}" if boot else None
    except (OSError, IndexError):
        return None


def family(
    identity: Optional[ProcessIdentity], marker: Optional[tuple[str, str]] = None
) -> list[psutil.Process]:
    """Return a process, its descendants, and every process that carries a marker in its environment.

    Args:
        identity: The ancestor; it may have ended, or be unknown.
        marker: An environment variable and its value. Descendants inherit it, so that those are found
            too whose parents have ended or that have left the process group.
    """
    found: dict[int, psutil.Process] = {}
    ancestor = identity.find() if identity else None
    if ancestor is not None:
        found[ancestor.pid] = ancestor
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # see the marker
            found.update((child.pid, child) for child in ancestor.children(recursive=True))
    if marker is not None:
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(marker[0]) == marker[1]:
                    found[process.pid] = process
            except (psutil.Error, OSError):
                continue  # it has ended, or belongs to another user
    return list(found.values())


def end_family(
    identity: Optional[ProcessIdentity],
    marker: Optional[tuple[str, str]] = None,
    grace_seconds: float = 10.0,
) -> list[psutil.Process]:
    """End a process with all its descendants: SIGTERM, then, after the grace, SIGKILL.

    Children that appear while it works are ended too, and those whose parent has ended first.

    Returns:
        Processes that are still alive after another 20 s (kept by the kernel, or another user's).
    """
    members = set(family(identity, marker))
    _signal(members, signal.SIGTERM)
    wait_for_end(members, grace_seconds)
    for _ in range(20):
        members = {member for member in members.union(family(identity, marker)) if _is_alive(member)}
        if not members:
            return []
        _signal(members, signal.SIGKILL)
        wait_for_end(members, 1.0)
    return [member for member in members if _is_alive(member)]


def wait_for_end(members: Collection[psutil.Process], seconds: float) -> bool:
    """Wait until none of these processes runs any more; return False if one still does after that time.

    A zombie has ended: in a container, the first process may never collect those that it inherits.
    """
    deadline = time.monotonic() + seconds
    while any(_is_alive(member) for member in members):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY)
    return True


def _signal(members: Collection[psutil.Process], number: signal.Signals) -> None:
    for member in members:
        # Another user's process (of sudo, say) cannot be signalled: the wait shows that it still runs.
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            member.send_signal(number)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
