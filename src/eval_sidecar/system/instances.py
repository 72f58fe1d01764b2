"""Named background processes: start one, find it again, end it, follow its log. Prints nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional

import psutil

import eval_sidecar
from eval_sidecar.errors import DaemonError, StateError, UsageError
from eval_sidecar.paths import ManagerPaths, UserPaths
from eval_sidecar.system.files import write_json, write_text
from eval_sidecar.system.logs import LogReader
from eval_sidecar.system.process import (
    ProcessIdentity,
    end_family,
    machine_elsewhere,
    this_machine,
    wait_for_end,
)

#: Asks an instance to end when its running evaluations have.
FINISH = signal.SIGUSR1
#: How often to look while waiting for a process, in seconds.
_LOOK_EVERY = 0.05
#: Characters of an instance's name that are percent-encoded in file names.
_UNSAFE = re.compile(r"^[.-]|[^\w .+=@,:-]")
#: Longest name of a file in bytes is 255 nearly everywhere; some of it is reserved for the endings.
_LONGEST_STEM = 200
#: Seconds by which the clock of a file system may be behind that of the processes.
_CLOCK_SLACK = 2.0


@dataclass(frozen=True)
class Instance:
    """A name, and the files that belong to it.

    Attributes:
        name: As the user gave it; it may hold anything that fits into a file's name.
        folder: ``MANAGER_DIR``.

    Raises:
        UsageError: if the name is empty, too long, or not text.
    """

    name: str
    folder: Path

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("'': give a name, such as cb64", setting="instance")
        try:
            length = len(self._stem.encode())
        except UnicodeEncodeError as error:
            raise UsageError(f"{self.name!r}: is not valid text", setting="instance") from error
        if length > _LONGEST_STEM:
            raise UsageError(
                f"{self.name[:40]}…: is too long for a file's name ({length} bytes)", setting="instance"
            )

    @property
    def _stem(self) -> str:
        # Not with quote(), which does not encode a dash or a dot.
        return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), self.name)

    @property
    def pid_file(self) -> Path:
        """Holds only the pid, for scripts that read it."""
        return ManagerPaths(self.folder).pid(self._stem)

    @property
    def record_file(self) -> Path:
        """Holds the process's identity and what it works on."""
        return ManagerPaths(self.folder).record(self._stem)

    @property
    def log_file(self) -> Path:
        """Gets everything that the process prints."""
        return ManagerPaths(self.folder).log(self._stem)


def list_instances(folder: Path) -> list[Instance]:
    """Return every instance that has left a record or a pid file in a folder, by name."""
    paths = ManagerPaths(folder)
    patterns = (paths.record("*"), paths.pid("*"))
    stems = {path.stem for pattern in patterns for path in folder.glob(pattern.name)}
    return [Instance(urllib.parse.unquote(stem), folder) for stem in sorted(stems)]


def find_instances(folder: Path) -> list[Instance]:
    """Return the instances of a folder, then those that this user has started from other folders.

    What is known of one that has no files any more is removed, if it was started on this machine.
    """
    found = list_instances(folder)
    user = UserPaths.of_environment()
    entries = sorted(user.instance(folder, "").parent.glob("*.json")) if user else []
    elsewhere = []
    for path in entries:
        try:
            entry = json.loads(path.read_bytes())
            known = Instance(entry["instance"], Path(entry["manager_dir"]))
        except (OSError, ValueError, TypeError, KeyError, UsageError):
            continue
        if os.path.realpath(known.folder) == os.path.realpath(folder):
            known = Instance(known.name, folder)
        if known in found:
            continue
        if known.record_file.exists() or known.pid_file.exists() or machine_elsewhere(entry):
            elsewhere.append(known)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return [*found, *sorted(elsewhere, key=lambda one: (one.name, str(one.folder)))]


def read_record(instance: Instance) -> dict[str, Any]:
    """Return the record of the instance's process; empty if there is none that can be read."""
    try:
        value = json.loads(instance.record_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def state_files(instance: Instance) -> list[Path]:
    """Return the ledgers that an instance's process worked on, by its record."""
    return [Path(path) for path in read_record(instance).get("state_files", [])]


def other_machine(instance: Instance) -> Optional[str]:
    """Return the other machine that it was started on and has not said that it ended; else None."""
    return machine_elsewhere(read_record(instance)) if instance.pid_file.exists() else None


def find_process(instance: Instance) -> Optional[ProcessIdentity]:
    """Return the instance's running process, or None.

    A pid alone is not enough, since pids are reused: the start time must be the recorded one. A pid
    file without a record (an older script's) counts if the process is a sidecar by its command line.
    """
    record = read_record(instance)
    if machine_elsewhere(record) is not None:
        return None
    if "pid" in record and "started" in record:
        identity = ProcessIdentity.from_json(record)
        return identity if identity.is_running() else None
    try:
        pid = int(instance.pid_file.read_text().split()[0])
        process = psutil.Process(pid)
        wrote_the_file = process.create_time() <= instance.pid_file.stat().st_mtime + _CLOCK_SLACK
        found = wrote_the_file and _is_sidecar(process.cmdline())
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return ProcessIdentity.of(pid) if found else None


def _is_sidecar(command: Sequence[str]) -> bool:
    """Return whether a command line is a sidecar's own, not an editor's that has one of its files open."""
    if len(command) < 2 or not Path(command[0]).name.startswith(("python", "pypy")):
        return False
    return any(Path(word).name == "eval_wandb_sidecar.py" for word in command[1:]) or (
        "-m" in command and command[command.index("-m") + 1 :][:1] == ["eval_sidecar"]
    )


def register(instance: Instance, **record: Any) -> None:  # noqa: ANN401 - plain JSON
    """Write down that this process is the instance.

    Raises:
        DaemonError: if another process is.
    """
    running = find_process(instance)
    if running is not None and running.pid != os.getpid():
        raise DaemonError(
            f"instance {instance.name}: is already running (pid {running.pid});"
            " stop it first, or give this one another name"
        )
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    write_json(instance.record_file, {**identity.to_json(), **this_machine(), **record})
    write_text(instance.pid_file, f"{os.getpid()}\n")
    user = UserPaths.of_environment()
    if user is not None:
        entry = {"instance": instance.name, "manager_dir": str(instance.folder), **this_machine()}
        # A home that cannot be written: it is found from its own folder only.
        with contextlib.suppress(OSError, StateError):
            write_json(user.instance(instance.folder, instance.name), entry)


def unregister(instance: Instance) -> None:
    """Remove this process's pid file; the record stays, for `status` to show how it ended."""
    if read_record(instance).get("pid") == os.getpid():
        instance.pid_file.unlink(missing_ok=True)


def start(
    instance: Instance,
    arguments: Sequence[str],
    *,
    cwd: Optional[Path] = None,
    environment: Optional[Mapping[str, str]] = None,
    timeout: float = 60.0,
) -> int:
    """Start an instance in the background; return its pid once it has done its first pass.

    Args:
        instance: Its name.
        arguments: What to run, as on the command line of ``eval-sidecar``.
        cwd: Where to run it; default: here.
        environment: Its variables; default: those of this process.
        timeout: How long to wait for the first pass; one that takes longer counts as started.

    Raises:
        DaemonError: if it is already running, or ended before that; with the last lines of its log.
    """
    running = find_process(instance)
    if running is not None:
        raise DaemonError(
            f"instance {instance.name}: is already running (pid {running.pid}); nothing was started"
        )
    instance.folder.mkdir(parents=True, exist_ok=True)
    with instance.log_file.open("ab") as log, LogReader(instance.log_file) as reader:
        reader.read()  # skip the output of earlier runs
        child = _spawn(arguments, cwd, os.environ if environment is None else environment, log)
        _wait_for_first_pass(instance, child, reader, timeout)
    return child.pid


def _spawn(
    arguments: Sequence[str], cwd: Optional[Path], environment: Mapping[str, str], log: BinaryIO
) -> subprocess.Popen[bytes]:
    """Start a process of this package in a session of its own; it prints into the log."""
    package_root = str(Path(eval_sidecar.__file__).parent.parent)
    python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "eval_sidecar", *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait_for_first_pass(
    instance: Instance, child: subprocess.Popen[bytes], reader: LogReader, timeout: float
) -> None:
    """Wait until a new process has done its first pass, or for `timeout` seconds.

    Raises:
        DaemonError: if it ended before that; with the last lines of its log.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise DaemonError(
                f"instance {instance.name}: ended at once with exit code {child.returncode};"
                f" the end of its log {instance.log_file}:",
                lines="\n".join(reader.read().strip().splitlines()[-20:]),
            )
        record = read_record(instance)
        if record.get("ready") and record.get("pid") == child.pid:
            return
        time.sleep(_LOOK_EVERY)


def stop(instance: Instance, *, timeout: float = 90.0) -> Optional[int]:
    """End an instance; return its pid when it has ended, or None if it was not running.

    It gets SIGTERM, ends its evaluations and finishes what it is sending. After the timeout it is
    killed with all its children.

    Raises:
        DaemonError: if it was started on another machine, and may still run there.
    """
    identity = find_process(instance)
    if (host := other_machine(instance)) is not None:
        raise DaemonError(f"instance {instance.name}: was started on {host}; stop it there")
    if identity is None:
        instance.pid_file.unlink(missing_ok=True)
        return None
    process = identity.find()
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended on its own
            process.send_signal(signal.SIGTERM)
        if not wait_for_end([process], timeout):
            end_family(identity, grace_seconds=5.0)
    instance.pid_file.unlink(missing_ok=True)
    return identity.pid


def finish(instance: Instance) -> Optional[int]:
    """Ask an instance to end when its running evaluations have; return its pid, or None if it does not run.

    Raises:
        DaemonError: if it runs on another machine, or a version of it that cannot be asked.
    """
    if (host := other_machine(instance)) is not None:
        raise DaemonError(f"instance {instance.name}: was started on {host}; stop it there")
    identity = find_process(instance)
    process = identity.find() if identity else None
    if process is None:
        return None
    if not read_record(instance).get("can_finish"):  # the signal would end it at once
        raise DaemonError(
            f"instance {instance.name}: runs a version that cannot end after the current evaluations;"
            " stop it without --after-current"
        )
    with contextlib.suppress(psutil.NoSuchProcess):  # ended by itself in this moment
        process.send_signal(FINISH)
    return process.pid


def forget(instance: Instance) -> None:
    """Remove what is known of an instance that does not run; its logs stay.

    Raises:
        DaemonError: if it runs, or may run on another machine.
    """
    if (host := other_machine(instance)) is not None:
        raise DaemonError(
            f"instance {instance.name}: was started on {host} and has not said that it ended; forget it"
            f" there, or, if that machine is gone, remove {instance.pid_file} first"
        )
    running = find_process(instance)
    if running is not None:
        raise DaemonError(f"instance {instance.name}: runs (pid {running.pid}); stop it first")
    for path in (instance.pid_file, instance.record_file):
        path.unlink(missing_ok=True)
    user = UserPaths.of_environment()
    if user is not None:
        with contextlib.suppress(OSError):
            user.instance(instance.folder, instance.name).unlink()


def follow_log(
    instance: Instance, last_lines: int, pause: Callable[[float], object] = time.sleep
) -> Iterator[str]:
    """Yield the end of the log, then what is added to it for as long as the instance runs.

    Raises:
        DaemonError: if there is no log.
    """
    try:
        reader = LogReader(instance.log_file)
    except FileNotFoundError as error:
        raise DaemonError(
            f"instance {instance.name}: has no log at {instance.log_file}; was it started from another"
            " folder, or with another MANAGER_DIR?"
        ) from error
    with reader:
        lines = reader.read().splitlines(keepends=True)
        yield from lines[max(0, len(lines) - last_lines) :]
        while True:
            alive = find_process(instance) is not None
            added = reader.read()
            if added:
                yield added
            elif not alive:
                return
            else:
                pause(0.5)
