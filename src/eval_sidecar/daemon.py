"""Named background processes: start one, find it again, end it, follow its log. Prints nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import psutil

import eval_sidecar
from eval_sidecar.errors import DaemonError
from eval_sidecar.files import write_json, write_text
from eval_sidecar.process import ProcessIdentity, end_family

#: How often to look while waiting for a process, in seconds.
_LOOK_EVERY = 0.05


@dataclass(frozen=True)
class Instance:
    """A name, and the files that belong to it.

    Attributes:
        name: As the user gave it; it may hold anything.
        folder: ``MANAGER_DIR``.
    """

    name: str
    folder: Path

    @property
    def _stem(self) -> str:
        return urllib.parse.quote(self.name, safe=" ") or "%"

    @property
    def pid_file(self) -> Path:
        """Holds the pid alone, for whoever reads it from a shell."""
        return self.folder / f"{self._stem}.pid"

    @property
    def record_file(self) -> Path:
        """Holds the process's identity and what it works on."""
        return self.folder / f"{self._stem}.json"

    @property
    def log_file(self) -> Path:
        """Gets everything that the process prints."""
        return self.folder / f"{self._stem}.log"


def list_instances(folder: Path) -> list[Instance]:
    """Every instance that has left a record or a pid file in a folder, by name."""
    stems = {path.stem for pattern in ("*.json", "*.pid") for path in folder.glob(pattern)}
    return [Instance(urllib.parse.unquote(stem), folder) for stem in sorted(stems)]


def read_record(instance: Instance) -> dict[str, Any]:
    """What the instance's process wrote of itself; empty where there is nothing readable."""
    try:
        value = json.loads(instance.record_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def find_process(instance: Instance) -> Optional[ProcessIdentity]:
    """The instance's running process, or None.

    A pid alone proves nothing, since pids are reused: the start time must be the recorded one. A pid
    file without a record (an older script's) counts where the process is a sidecar by its command line.
    """
    record = read_record(instance)
    if "pid" in record and "started" in record:
        identity = ProcessIdentity.from_json(record)
        return identity if identity.is_running() else None
    try:
        pid = int(instance.pid_file.read_text().split()[0])
        command = " ".join(psutil.Process(pid).cmdline())
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    is_sidecar = "eval_wandb_sidecar" in command or "eval_sidecar" in command
    return ProcessIdentity.of(pid) if is_sidecar else None


def register(instance: Instance, **record: Any) -> None:  # noqa: ANN401 - plain JSON
    """Write down that this process is the instance.

    Raises:
        DaemonError: where another process is.
    """
    running = find_process(instance)
    if running is not None and running.pid != os.getpid():
        raise DaemonError(
            f"instance {instance.name}: runs already (pid {running.pid});"
            " stop it first, or take another --instance"
        )
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    write_json(instance.record_file, {**identity.to_json(), **record})
    write_text(instance.pid_file, f"{os.getpid()}\n")


def unregister(instance: Instance) -> None:
    """Remove this process's pid file; the record stays, for `status` to show how it ended."""
    if read_record(instance).get("pid") == os.getpid():
        instance.pid_file.unlink(missing_ok=True)


def start(instance: Instance, arguments: Sequence[str], *, timeout: float = 60.0) -> int:
    """Start an instance in the background; return its pid once it has done its first pass.

    Args:
        instance: Its name.
        arguments: What to run, as on the command line of ``eval-sidecar``.
        timeout: How long to wait for the first pass; one that takes longer counts as started.

    Raises:
        DaemonError: where it runs already, or died before that; with the last lines of its log.
    """
    running = find_process(instance)
    if running is not None:
        raise DaemonError(f"instance {instance.name}: runs already (pid {running.pid}); nothing was started")
    instance.folder.mkdir(parents=True, exist_ok=True)
    instance.record_file.unlink(missing_ok=True)
    package_root = str(Path(eval_sidecar.__file__).parent.parent)
    python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    with instance.log_file.open("ab") as log:
        began = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "eval_sidecar", *arguments],
            env={**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if child.poll() is not None:
            said = instance.log_file.read_bytes()[began:].decode("utf-8", "replace").strip()
            last = "\n".join(said.splitlines()[-20:])
            raise DaemonError(
                f"instance {instance.name}: ended at once with exit code {child.returncode};"
                f" the end of its log {instance.log_file}:\n{last}"
            )
        if read_record(instance).get("ready"):
            break
        time.sleep(_LOOK_EVERY)
    return child.pid


def stop(instance: Instance, *, timeout: float = 90.0) -> Optional[int]:
    """End an instance; return its pid when it has ended, or None where it was not running.

    It gets SIGTERM, ends its evaluations and finishes what it is sending. After the timeout it is
    killed with everything it has started.
    """
    identity = find_process(instance)
    if identity is None:
        instance.pid_file.unlink(missing_ok=True)
        return None
    process = identity.find()
    if process is not None:
        try:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout)
        except psutil.TimeoutExpired:
            end_family(identity, grace_seconds=5.0)
        except psutil.NoSuchProcess:
            pass  # ended by itself in this moment
    instance.pid_file.unlink(missing_ok=True)
    return identity.pid


def follow_log(
    instance: Instance, last_lines: int, pause: Callable[[float], object] = time.sleep
) -> Iterator[str]:
    """Yield the end of the log, then what is added to it for as long as the instance runs.

    Raises:
        DaemonError: where there is no log.
    """
    try:
        file = instance.log_file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise DaemonError(f"instance {instance.name}: has no log at {instance.log_file}") from error
    with file:
        yield from file.read().splitlines(keepends=True)[-last_lines:]
        while True:
            alive = find_process(instance) is not None
            added = file.read()
            if added:
                yield added
            elif not alive:
                return
            else:
                pause(0.5)
