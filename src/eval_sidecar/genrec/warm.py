"""Hands an evaluation to a warm process (:mod:`.server`), and starts one if there is none.

The calling process waits for the evaluation's end and acts for it: the evaluation prints to the same files,
the exit code is the evaluation's, and if this process ends, so does the evaluation. It does not import torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from eval_sidecar.genrec.channel import Channel
from eval_sidecar.genrec.errors import one_line
from eval_sidecar.genrec.libraries import LIBRARIES, OPTIONAL_LIBRARIES, start_command

log = logging.getLogger(__name__)

#: Exit code if the warm process died during the evaluation.
EXIT_DIED = 1

#: Variables that belong to one evaluation; all others are the same in a warm process and its clients.
#: The first marks what the sidecar ends together with a job; a warm process outlives the job.
_OF_ONE_EVALUATION = ("EVAL_SIDECAR_JOB", "CKPT_LIST", "SHLVL", "OLDPWD", "_")


class _Stopped(BaseException):
    """SIGTERM was received."""


def evaluate_warm(folder: Path, devices: str, words: Sequence[str]) -> int | None:
    """Run an evaluation in the warm process for these devices.

    Args:
        folder: Folder of its owner's warm processes. They leave when the file ``lock`` in it is no longer
            locked (flock).
        devices: The devices, as given; each such list has its own process.
        words: The command line of the evaluation.

    Returns:
        The exit code; None if there is no warm process and none can be started.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_ONE_EVALUATION}
    previous = signal.signal(signal.SIGTERM, _raise_stopped)
    server: _Server | None = None
    try:
        server = _find_or_start(folder, devices, environment, words)
        answer = server.receive()
    except (_Stopped, KeyboardInterrupt) as stopped:
        if server is not None:
            server.kill()
        if isinstance(stopped, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        raise  # not reached
    except OSError as error:
        log.warning("no warm process (%s): evaluating in a new process", one_line(error))
        return None
    finally:
        signal.signal(signal.SIGTERM, previous)
    if answer is None:
        server.kill()  # its workers may be left
        log.error(
            "error: the warm process %d died during the evaluation; the next starts a new one",
            server.pid,
        )
        return EXIT_DIED
    return int(answer["code"])


def _raise_stopped(_number: int, _frame: object) -> NoReturn:
    raise _Stopped


class _Server:
    """A warm process that has accepted an evaluation.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        """Hand over a request, with the files that this process prints to.

        Args:
            path: The socket. The file beside it holds the process's id, and is locked by the
                client that it works for.
            request: The request, as JSON.

        Raises:
            OSError: If it is refused: the process has ended, or belongs to another environment.
        """
        self._channel = Channel(_connect(path))
        self._at_work = _pid_file(path).open()
        try:
            self._channel.send(request, [1, 2])
            accepted = self.receive()
            if accepted is None:
                raise ConnectionError("the process ended before it accepted the evaluation")
            fcntl.flock(self._at_work, fcntl.LOCK_SH)
        except (_Stopped, KeyboardInterrupt):
            self._kill_unless_at_work()
            raise
        self.pid = int(accepted["pid"])

    def _kill_unless_at_work(self) -> None:
        """Kill an idle process that does not answer: it would not answer the next client either."""
        with contextlib.suppress(BlockingIOError, ProcessLookupError):
            fcntl.flock(self._at_work, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if pid := self._at_work.read():
                os.killpg(int(pid), signal.SIGKILL)

    def receive(self) -> dict[str, Any] | None:
        """Return the next answer; None if the process has ended."""
        return self._channel.receive()

    def kill(self) -> None:
        """Kill the process and its workers, also in the middle of a computation; return when they have ended.

        It leads their process group, whose id is not reused until the last of them has ended.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        while self.receive() is not None:
            pass


def _find_or_start(
    folder: Path, devices: str, environment: Mapping[str, str], words: Sequence[str]
) -> _Server:
    """Return a warm process that has accepted the evaluation.

    Raises:
        OSError: If no process could be reached or started.
    """
    key = _key(environment)
    request = {"key": key, "words": list(words)}
    name = hashlib.sha256(f"{devices}\n{environment.get('CUDA_VISIBLE_DEVICES')}".encode()).hexdigest()[:12]
    path = folder / f"{name}.sock"
    with _locked(folder / f"{name}.starting"):
        # There is none yet, or it has ended, or it has another environment and ends now.
        with contextlib.suppress(OSError):
            return _Server(path, request)
        path.unlink(missing_ok=True)
        _pid_file(path).write_text("")  # never an id that another process may now have
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            # The socket exists before the process: clients need not wait until it is ready.
            inherited = [str(listener.fileno()), str(folder), key]
            process = subprocess.Popen(
                [*start_command("server"), *inherited],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )
        _pid_file(path).write_text(str(process.pid))
        return _Server(path, request)


def _pid_file(path: Path) -> Path:
    return path.with_suffix(".pid")


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep a second evaluation on the same devices from starting a process at the same time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _metadata_in(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(("-info", ".egg-link")))  # noqa: PTH208
    except OSError:
        return []  # missing, or a zip


def _key(environment: Mapping[str, str]) -> str:
    """Return a key that differs if a process would give other results, or work in another folder."""
    code = [path.read_bytes().hex() for path in sorted(Path(__file__).parent.rglob("*.py"))]
    specs = [importlib.util.find_spec(name) for name in (*LIBRARIES, *OPTIONAL_LIBRARIES)]
    files = [Path(spec.origin) for spec in specs if spec is not None and spec.origin]
    libraries = [(str(file), file.stat().st_mtime_ns) for file in files]
    # Their own dependencies too: a metadata folder is named after a library and its version.
    libraries += [(name, 0) for folder in sys.path for name in _metadata_in(folder)]
    here = Path.cwd()
    folder = here.stat()  # another folder may have taken its place, under the same name
    place = [str(here), folder.st_dev, folder.st_ino]
    parts = [sys.executable, sys.version, place, sorted(environment.items()), libraries, code]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
