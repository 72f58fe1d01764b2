"""The process that holds the W&B client, from outside: starts it, asks it, ends it when it hangs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from eval_sidecar.system.accounts import CLOUD, configured_key, server_address
from eval_sidecar.system.logs import SmallLog
from eval_sidecar.system.process import ProcessIdentity, end_family
from eval_sidecar.system.redaction import without_secrets
from eval_sidecar.trackers.wandb_checks import is_ours

# `-m` would search the working directory first, where a folder or a module may have any name.
_START = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; "
    "from eval_sidecar.trackers.wandb_worker import main; main(sys.argv[2])"
)
_GONE = object()
#: Requests after which a worker is replaced: the client keeps some memory and files of each session.
_WORN = 200
#: Seconds without an answer after which the log says what is waited for.
_PATIENCE = 8.0

#: Variables with paths that may be relative to the user's folder.
_PATHS = {
    "PYTHONPATH",
    "NETRC",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "WANDB_CONFIG_DIR",
    "WANDB_CREDENTIALS_FILE",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_DATA_DIR",
}

log = logging.getLogger(__name__)


class WorkerLost(Exception):
    """The worker ended, or had to be ended, before it answered."""


@dataclass
class Worker:
    """One worker process, and the callers that wait for its answers.

    Attributes:
        log: File that gets what the client prints.
        is_online: Whether what its sessions leave on this machine is of no use any more when it ends.
    """

    log: Path
    is_online: bool
    _waiting: dict[int, queue.SimpleQueue[Any]] = field(default_factory=dict)
    _reads: set[int] = field(default_factory=set)
    _users: int = 0
    _last_id: int = 0
    _retired: bool = False
    _dead: bool = False
    _has_said_so: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._scratch = tempfile.mkdtemp(prefix="eval-sidecar-wandb-")
        root = Path(__file__).resolve().parents[2]
        log = SmallLog(self.log)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(root), self._scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
            # Not the user's folder: the client takes a config-defaults.yaml there for this run's own.
            cwd=self._scratch,
            start_new_session=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout
        self._logger = threading.Thread(
            target=self._keep_log,
            args=(self._process.stderr, log),
            name="wandb-log",
            daemon=True,
        )
        self._logger.start()
        threading.Thread(target=self._listen, name="wandb-worker", daemon=True).start()

    def _environment(self) -> dict[str, str]:
        # An empty variable is one that is not set, to people and not to the client.
        ours = {
            name: value
            for name, value in os.environ.items()
            if is_ours(name) and (value or not name.startswith("WANDB_"))
        }
        # Clients differ in how a netrc file must name a server.
        ours.pop("WANDB_API_KEY", None)
        if (key := configured_key()) is not None:
            ours["WANDB_API_KEY"] = key
        # The worker's folder is another one.
        if (address := server_address()) is not None:
            ours["WANDB_BASE_URL"] = address
        for name in _PATHS & ours.keys():
            parts = ours[name].split(os.pathsep) if name == "PYTHONPATH" else [ours[name]]
            ours[name] = os.pathsep.join(str(Path(part).expanduser().absolute()) for part in parts if part)
        # The client's own process logs into the cache what servers answer.
        names = ["WANDB_DIR", "WANDB_CACHE_DIR"]
        if (
            self.is_online
        ):  # each session leaves copies of its table there; offline, they are still to be sent
            names += ["WANDB_DATA_DIR", "TMPDIR"]
        return {**ours, **dict.fromkeys(names, self._scratch)}

    @property
    def is_worn(self) -> bool:
        """Return whether it has done enough that a fresh process saves memory."""
        return self._last_id >= _WORN

    def enlist(self) -> bool:
        """Count one more user; False if the worker is about to end."""
        with self._lock:
            if self._retired or self._dead:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Count a user out."""
        with self._lock:
            self._users -= 1
        self._end_if_idle()

    def retire(self) -> None:
        """Take no new users."""
        with self._lock:
            self._retired = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        with self._lock:
            idle = self._retired and self._users == 0
        if idle:
            self.kill()

    def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerLost: there is none, and the worker is gone.
        """
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            self._last_id += 1
            number = self._last_id
            self._waiting[number] = answers
            if request["op"] == "read":
                self._reads.add(number)
            if self._dead:
                answers.put(_GONE)
        line = json.dumps({**request, "id": number, "scratch": self._scratch})
        # A worker that has ended is told of by the listener.
        with self._write_lock, contextlib.suppress(OSError, ValueError):
            self._requests.write(line + "\n")
            self._requests.flush()
        try:
            answer = self._wait(answers, request, deadline)
        except queue.Empty:
            self.kill()
            raise WorkerLost(
                f"no answer in {deadline:g} s, the client was stopped; outcome unknown"
            ) from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
                self._reads.discard(number)
        if answer is _GONE:
            raise WorkerLost("the client ended before it answered; outcome unknown")
        return dict(answer)

    def answer_reads(self, answer: dict[str, Any]) -> None:
        """Give every look-up that still waits this answer."""
        with self._lock:
            waiting = [self._waiting[number] for number in self._reads]
        for answers in waiting:
            answers.put(answer)

    def _wait(self, answers: queue.SimpleQueue[Any], request: dict[str, Any], deadline: float) -> Any:  # noqa: ANN401 - an answer
        """Wait for an answer, and log it if that takes long: silence looks like a program that hangs."""
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=min(_PATIENCE, deadline))
        if not self._has_said_so and deadline > _PATIENCE:
            self._has_said_so = True
            server = without_secrets(server_address() or CLOUD)
            where = server if self.is_online else "the W&B client, offline"
            what = f"{request['op']} of run {request['run_id']}"
            log.info("waiting for %s (%s): no answer in %.0f s", where, what, _PATIENCE)
        answer = answers.get(timeout=max(0.0, deadline - _PATIENCE))
        self._has_said_so = False
        return answer

    def _listen(self) -> None:
        for line in self._answers:
            try:
                answer = json.loads(line)
                number = answer["id"]
            except (ValueError, TypeError, LookupError):
                break  # not an answer of ours: the callers are told that the client is lost
            with self._lock:
                waiting = self._waiting.get(number)
            if waiting is not None:
                waiting.put(answer)
        self._answers.close()
        self.kill()

    def _keep_log(self, said: IO[str], log: SmallLog) -> None:
        """Write down what the client prints. It has the key, and may print what a server makes of it."""
        with said, contextlib.closing(log):
            for line in said:
                log.write(line)

    def kill(self) -> None:
        """End the worker and the client's own process, now. Idempotent."""
        with self._lock:
            if self._dead:
                return
            self._dead = True
            waiting = list(self._waiting.values())
        # The client puts its process into a session of its own, so that killing our group is not enough.
        end_family(ProcessIdentity.of(self._process.pid), grace_seconds=0.0)
        self._process.wait()
        self._logger.join(1.0)  # an error that names the log is raised after the log is complete
        for answers in waiting:
            answers.put(_GONE)
        with contextlib.suppress(OSError):
            self._requests.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
