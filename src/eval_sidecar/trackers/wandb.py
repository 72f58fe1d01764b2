"""The W&B adapter: hands look-ups and sessions to a worker process, and gets rid of it when it hangs.

Imports no wandb. The client may wait for days where a server does not answer, and cannot be interrupted
inside a process; a worker process can.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, Optional

import psutil

from eval_sidecar.errors import ReadBackUnsupported, StaleView, TrackerError
from eval_sidecar.logs import is_full, make_room
from eval_sidecar.texts import without_secrets
from eval_sidecar.trackers import wandb_content as content
from eval_sidecar.trackers.base import Receipt, ServerView, Session
from eval_sidecar.types import ModelSpec

#: Variables that would make the worker's runs somebody else's: those of a training that runs around us.
_NOT_OURS = re.compile(
    r"^WANDB_(SERVICE|RUN_ID|RUN_GROUP|RUN_NAME|NAME|NOTES|TAGS|JOB_TYPE|RESUME|MODE|DISABLED|DIR|SWEEP_.*"
    r"|LAUNCH.*|ARTIFACTS|FORK_FROM|RESUME_FROM|_REQUIRE_.*)$"
)
_BAD_RUN_ID = re.compile(r"[:;,#?/'\\]")
# `-m` would search the working directory first, where a folder or a module may have any name.
_START = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; "
    "from eval_sidecar.trackers.wandb_worker import main; main(sys.argv[2])"
)
_GONE = object()
#: Requests after which a worker is replaced: the client keeps some memory and files of each session.
_WORN = 200


@dataclass(frozen=True)
class WandbSettings:
    """How runs are written.

    Attributes:
        log: File that gets what the client prints.
        directory: Where offline sessions are kept; the client adds a ``wandb`` folder.
        mode: ``online`` or ``offline``.
        resume: As in `wandb.init`.
        job_type: Job type of the runs.
        send_deadline: Seconds that one session may take.
        read_deadline: Seconds that one look-up may take.
        init_timeout: Seconds that the client may try to open a run.
        request_timeout: Seconds that one request to the server may take.
        retries: How often the client tries a request again.
        retry_wait: Seconds before the first of these, twice as long before each further one, up to ten
            times that. Whole: the client cuts fractions off, and takes none for its own default.
    """

    log: Path
    directory: Path
    mode: str = "online"
    resume: str = "allow"
    job_type: str = "eval"
    send_deadline: float = 300.0
    read_deadline: float = 120.0
    init_timeout: float = 30.0
    request_timeout: float = 30.0
    retries: int = 6
    retry_wait: int = 1


class WandbTracker:
    """Keeps points in W&B runs. The worker starts with the first call."""

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._worker: Optional[_Worker] = None
        self._lock = threading.Lock()

    def read(self, spec: ModelSpec) -> ServerView:
        """See `Tracker.read`."""
        if self._settings.mode != "online":
            raise ReadBackUnsupported(
                f"W&B mode is {self._settings.mode}: what has arrived cannot be looked up"
            )
        keys = {
            "delivered_key": content.DELIVERED,
            "table_key": content.TABLE,
            "home_key": content.HOME,
        }
        request = {"op": "read", **_run_of(spec), **keys}
        answer = self._ask(request, self._settings.read_deadline)
        if "unsupported" in answer:
            # The run's own summary is the next best proof: it is written after the rows, with them.
            delivered = content.delivered_rows(answer.get("delivered"))
            if delivered is None:
                raise ReadBackUnsupported(answer["unsupported"], rows=answer.get("count", 0))
            last = max((row.index for row in delivered), default=-1)
            return ServerView(
                *(True, last, delivered),
                knows_end=False,
                described=delivered,
                home=answer.get("home"),
            )
        rows = answer["rows"]
        points = filter(None, map(content.server_row_of, rows))
        return ServerView(
            exists=answer["exists"],
            last_index=max(map(content.index_of, rows), default=-1),
            rows=tuple(sorted(points, key=lambda row: row.index)),
            writer=answer["writer"],
            described=content.delivered_rows(answer["delivered"]) if answer["table_stored"] else (),
            home=answer.get("home"),
        )

    def send(self, session: Session) -> Receipt:
        """See `Tracker.send`."""
        settings, spec = self._settings, session.spec
        request = {
            "op": "send",
            **_run_of(spec),
            "name": spec.run_name,
            "group": spec.group,
            "job_type": settings.job_type,
            "resume": settings.resume,
            "mode": settings.mode,
            "directory": str(settings.directory),
            "config": content.config_of(spec),
            "start": session.start,
            "rows": [(index, content.row_of(point)) for index, point in session.rows],
            "summary": {
                **content.summary_of(session.table, session.placed),
                **({content.HOME: session.home} if session.home else {}),
            },
            "table": {
                "key": content.TABLE,
                "columns": content.table_columns_of(session.table),
                "rows": content.table_rows_of(session.table),
            },
        }
        answer = self._ask(request, settings.send_deadline)
        if "stale" in answer:
            raise StaleView(
                f"run {spec.run_id} stands at step {answer['stale']}, the look-up said {session.start}: "
                "rows that it did not show, or another writer; nothing was sent"
            )
        return Receipt(where=answer["where"], table_problem=answer["table_problem"])

    def close(self) -> None:
        """See `Tracker.close`."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        settings = self._settings
        if _BAD_RUN_ID.search(request["run_id"]):
            raise TrackerError(
                f"W&B run id {request['run_id']!r} holds a character that W&B refuses (:;,#?/'\\)",
                permanent=True,
            )
        request["timeouts"] = {
            "init": settings.init_timeout,
            "request": settings.request_timeout,
            "retries": settings.retries,
            "retry_wait": settings.retry_wait,
        }
        try:
            worker = self._enlist()
        except OSError as error:
            raise TrackerError(f"the W&B client cannot be started ({error})", nothing_sent=True) from error
        what = f"{request['op']} of run {request['run_id']}"
        try:
            answer = worker.ask(request, deadline)
        except _WorkerLost as lost:
            self._retire(worker)
            raise TrackerError(f"W&B {what}: {lost}; see {settings.log}") from None
        finally:
            worker.release()
        if "error" in answer and request["op"] == "send":
            # The client takes a run id for used after a session that failed to open.
            self._retire(worker)
        if "error" in answer:
            nothing_sent = bool(answer.get("nothing_sent"))
            raise TrackerError(answer["error"], permanent=answer["permanent"], nothing_sent=nothing_sent)
        return answer

    def _enlist(self) -> _Worker:
        worker = self._worker
        if worker is not None and (worker.is_worn or is_full(self._settings.log)):
            self._retire(worker)
        with self._lock:
            if self._worker is None or not self._worker.enlist():
                self._worker = _Worker(self._settings.log, self._settings.mode == "online")
                self._worker.enlist()
            return self._worker

    def _retire(self, worker: _Worker) -> None:
        """Give the worker no more to do; it ends with its last request."""
        with self._lock:
            if self._worker is worker:
                self._worker = None
        worker.retire()


def _run_of(spec: ModelSpec) -> dict[str, Any]:
    return {"entity": spec.entity, "project": spec.project, "run_id": spec.run_id}


class _WorkerLost(Exception):
    """The worker ended, or had to be ended, before it answered."""


@dataclass
class _Worker:
    """One worker process, and who waits for its answers.

    Attributes:
        log: File that gets what the client prints.
        is_online: Whether what its sessions leave on this machine is of no use any more when it ends.
    """

    log: Path
    is_online: bool
    _waiting: dict[int, queue.SimpleQueue[Any]] = field(default_factory=dict)
    _users: int = 0
    _last_id: int = 0
    _retired: bool = False
    _dead: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._scratch = tempfile.mkdtemp(prefix="eval-sidecar-wandb-")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        make_room(self.log)
        root = Path(__file__).resolve().parents[2]
        log = self.log.open("ab", buffering=0)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(root), self._scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
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
        ours = {name: value for name, value in os.environ.items() if not _NOT_OURS.match(name)}
        # The client's own process logs into the cache what servers answer.
        names = ["WANDB_DIR", "WANDB_CACHE_DIR"]
        if (
            self.is_online
        ):  # each session leaves copies of its table there; offline, they are still to be sent
            names += ["WANDB_DATA_DIR", "TMPDIR"]
        return {**ours, **dict.fromkeys(names, self._scratch)}

    @property
    def is_worn(self) -> bool:
        """Whether it has done so much that what the client keeps of it is worth a fresh start."""
        return self._last_id >= _WORN

    def enlist(self) -> bool:
        """Count another user in; False where the worker is on its way out."""
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
            _WorkerLost: there is none, and the worker is gone.
        """
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            self._last_id += 1
            number = self._last_id
            self._waiting[number] = answers
            if self._dead:
                answers.put(_GONE)
        line = json.dumps({**request, "id": number, "scratch": self._scratch})
        # A worker that has ended is told of by the listener.
        with self._write_lock, contextlib.suppress(OSError, ValueError):
            self._requests.write(line + "\n")
            self._requests.flush()
        try:
            answer = answers.get(timeout=deadline)
        except queue.Empty:
            self.kill()
            raise _WorkerLost(
                f"no answer in {deadline:g} s, the client was stopped; outcome unknown"
            ) from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer is _GONE:
            raise _WorkerLost("the client ended before it answered; outcome unknown")
        return dict(answer)

    def _listen(self) -> None:
        for line in self._answers:
            try:
                answer = json.loads(line)
                number = answer["id"]
            except (ValueError, TypeError, LookupError):
                break  # no answer of ours: whoever waits is told that the client is lost
            with self._lock:
                waiting = self._waiting.get(number)
            if waiting is not None:
                waiting.put(answer)
        self._answers.close()
        self.kill()

    def _keep_log(self, said: IO[str], log: RawIOBase) -> None:
        """Write down what the client prints. It has the key, and may print what a server makes of it."""
        with said, log:
            for line in said:
                # Where the disk is full, the client must not wait for somebody to read what it prints.
                with contextlib.suppress(OSError):
                    log.write(without_secrets(line).encode())

    def kill(self) -> None:
        """End the worker and the client's own process, now. Idempotent."""
        with self._lock:
            if self._dead:
                return
            self._dead = True
            waiting = list(self._waiting.values())
        # The client puts its process into a session of its own, so that killing our group is not enough.
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = psutil.Process(self._process.pid)
            for process in [*worker.children(recursive=True), worker]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._logger.join(1.0)  # whoever is told to look into the log finds everything there
        for answers in waiting:
            answers.put(_GONE)
        with contextlib.suppress(OSError):
            self._requests.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
