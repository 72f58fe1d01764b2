"""The process that holds the W&B client, and the only module that imports it.

Reads one JSON request a line from stdin and answers on stdout, each request in a thread of its own.
Nothing is decided here: `wandb.py` says what to send, and kills this process if it hangs. It ends,
with the client's background process, as soon as stdin does.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Optional, TextIO
from urllib.parse import quote

from eval_sidecar.system.redaction import without_secrets
from eval_sidecar.trackers.wandb_errors import NO_SUCH_QUERY, describe, is_missing_run
from eval_sidecar.trackers.wandb_settings import quiet_settings

Request = dict[str, Any]
Answer = dict[str, Any]
#: A run of the client, or of its public API. The client's types are unknown if it is not installed.
Run = Any

_SUMMARY_QUERY = """
query RunSummary($entity: String, $project: String!, $run: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $run, missingOk: true) { summaryMetrics config }
  }
}
"""
#: What of an answer may quote the server or the client.
_TEXTS = ("error", "unsupported", "table_problem", "where")
#: Steps, not rows, that one history query covers.
_PAGE = 10_000
#: Seconds without a heartbeat after which a run counts as not being written.
_FRESH_SECONDS = 60.0


class Client:
    """The W&B client as this process uses it; made with the first request.

    Raises:
        ImportError: if wandb is not installed.
    """

    def __init__(self, timeouts: Request) -> None:
        import wandb

        self.wandb = wandb
        # A client older than a setting does not accept it.
        known = getattr(wandb.Settings, "model_fields", {})
        self._quiet = {name: value for name, value in quiet_settings(timeouts).items() if name in known}
        wandb.setup(settings=self.settings())
        #: Held by offline sessions, which end the client's process.
        self.alone = threading.Lock()
        self._timeout = max(1, int(timeouts["request"]))
        self._api: Any = None
        self._loaded: set[str] = set()
        self._lock = threading.Lock()

    def write_out(self) -> None:
        """Wait until finished sessions are on disk: finishing an offline one does not.

        The client's process writes them before it ends; the next session starts a new one.
        """
        self.wandb.teardown()
        self.wandb.setup(settings=self.settings())

    def settings(self) -> Any:  # noqa: ANN401 - the client's own type
        """Return settings for one session.

        `wandb.init` writes the run's id, name and folder into them: sessions that shared them would write
        into each other's runs.
        """
        return self.wandb.Settings(**self._quiet)

    def api(self) -> Any:  # noqa: ANN401 - the client's own type
        """Return the client's public API."""
        with self._lock:
            if self._api is None:
                self._api = self.wandb.Api(timeout=self._timeout)
            return self._api

    def run(self, path: str) -> Run:
        """Look a run up, never from the client's cache."""
        known = path in self._loaded
        run = self.api().run(path)
        if known:
            run.load(force=True)
        with self._lock:
            self._loaded.add(path)
        return run


def address(client: Client, request: Request) -> Answer:
    """Return the page of a run, which need not exist; asks the server whose key this is."""
    entity = request["entity"] or client.api().default_entity
    if not entity:
        return {"where": None}
    settings = client.wandb.setup().settings
    # Clients before this setting compute it elsewhere.
    pages = getattr(settings, "app_url", None) or client.wandb.util.app_url(settings.base_url)
    names = [quote(name, safe="") for name in (entity, request["project"], "runs", request["run_id"])]
    return {"where": "/".join([pages.rstrip("/"), *names])}


def read(client: Client, request: Request) -> Answer:
    """Look up a run and all its rows, as scalars; failing that, what its summary says of them."""
    try:
        answer = _read_history(client, request)
    except Exception as error:  # what a server answers comes as this client's own errors, of any sort
        if not NO_SUCH_QUERY.search(str(error)):
            raise
        answer = describe(error, request)
    return {**answer, **_read_summary(client, request)} if "unsupported" in answer else answer


def _read_summary(client: Client, request: Request) -> Answer:
    """Return what the run's summary says was delivered, asked for without the client.

    The client sends its queries in a form that some servers do not take, or with fields that they do not
    have; this one has been the same since the beginning.
    """
    import requests

    settings = client.wandb.setup().settings
    variables = {"entity": request["entity"], "project": request["project"], "run": request["run_id"]}
    response = requests.post(
        f"{settings.base_url}/graphql",
        json={"query": _SUMMARY_QUERY, "variables": variables},
        auth=("api", client.wandb.api.api_key or ""),
        timeout=request["timeouts"]["request"],
    )
    if response.status_code in (400, 404, 422):
        return {}  # does not know this query either
    response.raise_for_status()
    run = ((response.json().get("data") or {}).get("model") or {}).get("bucket")
    summary = json.loads((run or {}).get("summaryMetrics") or "{}")
    config = sorted(json.loads((run or {}).get("config") or "{}")) if run else None
    delivered = summary.get(request["delivered_key"]) if run else "[]"
    return {"delivered": delivered, "config": config, "home": summary.get(request["home_key"])}


def _read_history(client: Client, request: Request) -> Answer:
    path = "/".join(part for part in (request["entity"], request["project"], request["run_id"]) if part)
    try:
        run = client.run(path)
    except (ValueError, client.wandb.errors.CommError) as error:
        if is_missing_run(error):
            nothing = {"delivered": None, "table_stored": True}
            return {"exists": False, "config": None, "rows": [], "writer": None, **nothing}
        raise
    count = getattr(run, "historyLineCount", None) or 0
    if count and getattr(run, "historyKeys", None) is None:
        # The client would take this for a run without rows.
        return {
            "unsupported": f"the server has {count} rows of {path} and cannot show them",
            "count": count,
            "config": sorted(run.config),
        }
    rows = list(_rows_of(run))
    # Not run.summary: the client keeps that from the first look-up.
    summary = run.summary_metrics or {}
    delivered = summary.get(request["delivered_key"])
    return {
        "exists": True,
        "config": sorted(run.config),
        "rows": rows,
        "writer": _writer_of(run),
        "delivered": delivered,
        "home": summary.get(request["home_key"]),
        "table_stored": delivered is None or _is_stored(run, summary.get(request["table_key"])),
    }


def _is_stored(run: Run, media: Any) -> bool:  # noqa: ANN401 - as the server keeps it
    """Return whether the file that a summary names is there; the summary names it before it is."""
    path = media.get("path") if hasattr(media, "get") else None
    try:
        return bool(path) and any(file.name == path and file.size for file in run.files(names=[path]))
    except Exception as error:  # as above
        if NO_SUCH_QUERY.search(str(error)):
            return True  # a server that cannot tell
        raise


def _rows_of(run: Run) -> Iterator[dict[str, Any]]:
    # Whole rows, although we need few keys: with keys, a scan returns only rows that have all of them, so
    # rows that are not points would not count for the last index, and optional keys (a revision, a metric
    # that one model lacks) would hide points. It also goes through the server's sampling, where the scan
    # without keys asks for the history itself. Without use_cache=False rows exported to Parquet earlier
    # would be read from this machine's disk, however old.
    fresh = {"use_cache": False} if "use_cache" in inspect.signature(run.scan_history).parameters else {}
    for row in run.scan_history(page_size=_PAGE, **fresh):
        yield {
            key: value
            for key, value in row.items()
            if (key in ("_step", "checkpoint_step") or key.startswith("eval/"))
            and isinstance(value, (int, float, str))
        }


def _writer_of(run: Run) -> Optional[str]:
    """Return who seems to be writing the run, in words."""
    heartbeat = getattr(run, "heartbeatAt", None)
    if run.state != "running" or not heartbeat:
        return None
    moment = datetime.strptime(heartbeat[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    age = (datetime.now(timezone.utc) - moment).total_seconds()
    if age >= _FRESH_SECONDS:
        return None
    return f"the run is running, heartbeat {max(0, round(age))} s ago"


def send(client: Client, request: Request) -> Answer:
    """Append rows in one session, or nothing if the run is not at the expected index."""
    if request["mode"] == "online":
        folder = tempfile.mkdtemp(dir=request["scratch"])
        try:
            return _session(client, request, folder, online=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    Path(request["directory"]).mkdir(parents=True, exist_ok=True)
    with client.alone:
        answer = _session(client, request, request["directory"], online=False)
        client.write_out()
    return answer


def _session(client: Client, request: Request, folder: str, *, online: bool) -> Answer:
    run = _open(client, request, folder)
    request["opened"] = True
    start = request["start"] if online else None
    if start is not None and run.starting_step != start:
        stands = run.starting_step
        run.finish()
        return {"stale": stands}
    finished = False
    try:
        table_problem = _log(client, run, request, online=online)
        run.finish()
        finished = True
    finally:
        if not finished:
            run.finish(exit_code=1)
    where = run.url if online and run.url else str(Path(run.dir).parent)
    return {"where": where, "table_problem": table_problem}


def _open(client: Client, request: Request, folder: str) -> Run:
    given = ("name", "group", "job_type", "config", *(["resume"] if request["mode"] == "online" else []))
    return client.wandb.init(
        project=request["project"],
        entity=request["entity"],
        id=request["run_id"],
        mode=request["mode"],
        dir=folder,
        reinit="create_new",
        settings=client.settings(),
        **{key: request[key] for key in given if key in request},
    )


def _log(client: Client, run: Run, request: Request, *, online: bool) -> Optional[str]:
    """Log rows, table and summary; return why the table is not stored, if that is known."""
    # W&B's own summary takes the row logged last, which may be a late checkpoint's: switched off. These
    # definitions are not carried over from one session to the next.
    run.define_metric("checkpoint_step", hidden=True, summary="none")
    run.define_metric("eval/*", step_metric="checkpoint_step", summary="none")
    rows, given = request["rows"], request["table"]
    problem: Optional[str] = None
    for index, row in rows[:-1]:
        run.log(row, step=index)
    try:
        table = client.wandb.Table(columns=given["columns"], data=given["rows"], allow_mixed_types=True)
        for index, row in rows[-1:]:
            run.log({**row, given["key"]: table}, step=index)
        # The page finds the table through the summary. A table that was logged is not stored again.
        run.summary.update({given["key"]: table})
    except Exception as error:  # noqa: BLE001 - a table that cannot be stored must not cost the point
        problem = f"{type(error).__name__}: {error}"
        for index, row in rows[-1:]:
            run.log(row, step=index)
    run.summary.update(request["summary"])
    return problem or (_wait_for_artifact(table) if online else None)


def _wait_for_artifact(table: Any) -> Optional[str]:  # noqa: ANN401 - the client's own type
    """Wait until the server has the artifact that the client makes of a table; return why it has not.

    The page shows the table from it, and it is the one thing whose arrival the client acknowledges. A table
    has no public way to its artifact, and the artifact's own `wait` asks the server for it once more: a
    client that keeps the acknowledgement elsewhere leaves us with what a look-up shows of the table.
    """
    artifact = getattr(getattr(table, "_artifact_target", None), "artifact", None)
    wait = getattr(getattr(artifact, "_save_handle", None), "wait_or", None)
    if wait is None:
        return None
    return wait(timeout=None).response.log_artifact_response.error_message or None


class Worker:
    """Answers requests until their source ends."""

    def __init__(self, requests: TextIO, answers: TextIO) -> None:
        self._requests = requests
        self._answers = answers
        self._client: Optional[Client] = None
        self._client_lock = threading.Lock()
        self._answer_lock = threading.Lock()

    def serve(self) -> None:
        """Start a thread for every request; returns when there are no more."""
        for line in self._requests:
            threading.Thread(target=self._answer, args=(json.loads(line),), daemon=True).start()

    def _answer(self, request: Request) -> None:
        operations: dict[str, Callable[[Client, Request], Answer]] = {
            "address": address,
            "read": read,
            "send": send,
        }
        try:
            with self._client_lock:
                if self._client is None:
                    self._client = Client(request["timeouts"])
            answer = operations[request["op"]](self._client, request)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the caller waits for an answer
            sys.stderr.write(self._without_key(traceback.format_exc()))
            answer = {**describe(error, request), "nothing_sent": "opened" not in request}
        # Texts alone: a password may look like a number.
        texts = {key: self._without_key(answer[key]) for key in _TEXTS if isinstance(answer.get(key), str)}
        line = json.dumps({**answer, **texts, "id": request["id"]})
        with self._answer_lock:
            self._answers.write(line + "\n")
            self._answers.flush()

    def _without_key(self, text: str) -> str:
        # Only the client knows all the places of a key.
        settings = self._client.wandb.setup().settings if self._client is not None else None
        return without_secrets(text, [getattr(settings, "api_key", None)])


@contextmanager
def _own_channel() -> Iterator[tuple[TextIO, TextIO]]:
    """Take stdin and stdout away from everybody else: prompts find no input, prints go to stderr."""
    with (
        os.fdopen(os.dup(0), encoding="utf-8") as requests,
        os.fdopen(os.dup(1), "w", encoding="utf-8") as answers,
    ):
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        yield requests, answers


def kill_children() -> None:
    """End every process started from here. The client's is in a session of its own: no group reaches it."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def main(scratch: str) -> None:
    """Serve stdin until it ends, then leave nothing behind, the client's own files included."""
    with _own_channel() as (requests, answers):
        try:
            Worker(requests, answers).serve()
        finally:
            kill_children()
            shutil.rmtree(scratch, ignore_errors=True)
            # The client's exit handlers would wait for uploads that are no longer wanted.
            os._exit(0)
