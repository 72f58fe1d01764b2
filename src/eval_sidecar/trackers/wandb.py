"""The W&B adapter: hands look-ups and sessions to a worker process, and gets rid of it when it hangs.

Imports no wandb. The client may wait for days if a server does not answer, and cannot be interrupted
inside a process; a worker process can.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.errors import ReadBackUnsupported, StaleView, TrackerError
from eval_sidecar.trackers import wandb_content as content
from eval_sidecar.trackers.base import Sent, ServerView, Session
from eval_sidecar.trackers.wandb_checks import display_name, why_bad_id
from eval_sidecar.trackers.wandb_client import Worker, WorkerLost
from eval_sidecar.types import ModelSpec


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
        self._worker: Optional[Worker] = None
        self._lock = threading.Lock()
        #: Names of the config keys of each run that was looked up; None if it does not exist.
        self._found: dict[tuple[Optional[str], str, str], Optional[list[str]]] = {}

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
        self._found[spec.entity, spec.project, spec.run_id] = answer.get("config")
        if "unsupported" in answer:
            # The run's own summary is the next best proof: it is written after the rows, with them.
            delivered = content.delivered_rows(answer.get("delivered"))
            if delivered is None:
                raise ReadBackUnsupported(answer["unsupported"], rows=answer.get("count", 0))
            last = max((row.index for row in delivered), default=-1)
            home = answer.get("home")
            return ServerView(True, last, delivered, knows_end=False, summary_rows=delivered, home=home)
        rows = answer["rows"]
        points = filter(None, map(content.server_row_of, rows))
        return ServerView(
            exists=answer["exists"],
            last_index=max(map(content.index_of, rows), default=-1),
            rows=tuple(sorted(points, key=lambda row: row.index)),
            writer=answer["writer"],
            summary_rows=content.delivered_rows(answer["delivered"]) if answer["table_stored"] else (),
            home=answer.get("home"),
        )

    def send(self, session: Session) -> Sent:
        """See `Tracker.send`."""
        settings, spec = self._settings, session.spec
        request = {
            "op": "send",
            **_run_of(spec),
            **self._description(session),
            "resume": settings.resume,
            "mode": settings.mode,
            "directory": str(settings.directory),
            "start": session.start,
            "rows": [(index, content.row_of(point)) for index, point in session.rows],
            "summary": {
                **content.summary_of(session.table, session.row_by_step),
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
        return Sent(where=answer["where"], table_problem=answer["table_problem"])

    def _description(self, session: Session) -> dict[str, Any]:
        """Return what the run is called and filtered by, as far as that is ours to say.

        A run gets its name once, so that one that was renamed on the page stays so. A run that was not made
        for this has no config like ours; its own is another program's.
        """
        spec = session.spec
        config = content.config_of(spec)
        keys = self._found.get((spec.entity, spec.project, spec.run_id))
        is_new = keys is None
        if self._settings.mode != "online":  # no server to ask, but what was sent from here is known
            is_new = len(session.row_by_step) <= len(session.rows)
        if keys is not None and not config.keys() <= set(keys):
            return {}
        named = {"name": display_name(spec.run_name)} if is_new else {}
        return {**named, "group": spec.group, "job_type": self._settings.job_type, "config": config}

    def address(self, spec: ModelSpec) -> Optional[str]:
        """See `Tracker.address`."""
        if self._settings.mode != "online":
            return None
        where = self._ask({"op": "address", **_run_of(spec)}, self._settings.read_deadline).get("where")
        return str(where) if where else None

    def close(self) -> None:
        """See `Tracker.close`."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        settings = self._settings
        if why := why_bad_id(request["run_id"]):
            raise TrackerError(f"run id {request['run_id']!r}: {why}", permanent=True)
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
        try:
            answer = worker.ask(request, deadline)
        except WorkerLost as lost:
            self._retire(worker)
            raise TrackerError(f"W&B {request['op']}: {lost}; see {settings.log}") from None
        finally:
            worker.release()
        if "error" in answer and request["op"] == "send":
            # The client takes a run id for used after a session that failed to open.
            self._retire(worker)
        if "error" in answer and answer.get("unreachable"):
            # The client asks one after the other: each of the rest would wait as long for the same answer.
            worker.answer_reads(answer)
            self._retire(worker)
        if "error" in answer:
            raise TrackerError(
                answer["error"],
                permanent=answer["permanent"],
                nothing_sent=bool(answer.get("nothing_sent")),
                unreachable=bool(answer.get("unreachable")),
            )
        return answer

    def _enlist(self) -> Worker:
        worker = self._worker
        if worker is not None and worker.is_worn:
            self._retire(worker)
        with self._lock:
            if self._worker is None or not self._worker.enlist():
                self._worker = Worker(self._settings.log, self._settings.mode == "online")
                self._worker.enlist()
            return self._worker

    def _retire(self, worker: Worker) -> None:
        """Give the worker no more to do; it ends with its last request."""
        with self._lock:
            if self._worker is worker:
                self._worker = None
        worker.retire()


def _run_of(spec: ModelSpec) -> dict[str, Any]:
    return {"entity": spec.entity, "project": spec.project, "run_id": spec.run_id}
