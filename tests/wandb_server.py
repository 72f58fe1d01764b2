"""A W&B server for tests: speaks the client's protocol on loopback, and fails on request.

`WandbServer` runs it in this process; ``python tests/wandb_server.py --port P --store FILE`` in its own,
driven over ``POST /control`` (``{"do": <method>, "with": {…}}``) and inspected over ``GET /state``.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Optional
from urllib.parse import unquote

from wandb_store import GraphQLRefusal, Key, Run, Store, now

#: The operations of a look-up that a server without history queries does not know.
HISTORY_QUERIES = ("RunParquetHistory", "HistoryPage", "SampledHistoryPage", "RunHistoryKeys")
_FILE_STREAM = re.compile(r"^/files/([^/]+)/([^/]+)/([^/]+)/file_stream$")
_OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")
_FIRST_FIELD = re.compile(r"{\s*(\w+)")


@dataclass
class Fault:
    """What happens to requests of one kind.

    Attributes:
        kind: A GraphQL operation's name, ``graphql`` (any), ``file_stream``, ``upload`` or ``*``.
        action: ``status``, ``hang`` (until released), ``drop`` (close the connection before anything
            is stored) or ``drop-after`` (store, then close it).
        status: HTTP status to answer with.
        message: Its text.
        skip: Requests to let pass first.
        times: Requests to hit; None means all.
        run_id: Only requests of this run, where they name one.
    """

    kind: str
    action: str = "status"
    status: int = 500
    message: str = "a fault was asked for"
    skip: int = 0
    times: Optional[int] = None
    run_id: Optional[str] = None
    hits: int = field(default=0)

    def takes(self, kind: str, group: str, run_id: Optional[str]) -> bool:
        """Whether this request is one to hit; counts it."""
        if self.kind not in (kind, group, "*") or (self.run_id and self.run_id != run_id):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


class WandbServer:
    """The server.

    Attributes:
        key: API key that clients must use.
        store: What it keeps.
        requests: Number of requests by kind: GraphQL operation, ``file_stream``, ``upload``.
        latency: Milliseconds that every request takes at least.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        key: str = "0123456789abcdef" * 2 + "01234567",
        entity: str = "team",
        path: Optional[str] = None,
    ) -> None:
        self.key = key
        self.store = Store(entity, path)
        self.requests: Counter[str] = Counter()
        self.latency = 0.0
        self._faults: list[Fault] = []
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._http = _Quiet(("127.0.0.1", port), type("Handler", (_Handler,), {"server_of": self}))
        self.url = self.store.base_url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def runs(self) -> dict[Key, Run]:
        """Runs by entity, project and run id."""
        return self.store.runs

    def run(self, run_id: str) -> Run:
        """The only run of that id, in whatever project."""
        (run,) = (run for run in self.runs.values() if run.run_id == run_id)
        return run

    def start(self) -> WandbServer:
        """Begin to answer."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End, releasing what hangs."""
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        self.store.close()

    def __enter__(self) -> WandbServer:
        return self.start()

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.stop()

    # -- what goes wrong; each of these can be called over /control too ------------------------------

    def fault(self, kind: str, **how: Any) -> None:
        """Let requests fail; see `Fault`."""
        with self._lock:
            self._faults.append(Fault(kind, **how))

    def heal(self) -> None:
        """Forget all faults and release whatever hangs."""
        with self._lock:
            self._faults.clear()
            released, self._released = self._released, threading.Event()
        released.set()
        self.store.refused.clear()
        self.store.forbidden.clear()

    def set_latency(self, milliseconds: float) -> None:
        """Make every request take this long at least."""
        self.latency = milliseconds

    def refuse_history(self) -> None:
        """Become a server that cannot show history rows."""
        self.store.refused.update(HISTORY_QUERIES)

    def forbid(self, entity: str) -> None:
        """Refuse runs of an entity with 403."""
        self.store.forbidden.add(entity)

    def hide(self, run_id: str, lines: int, lookups: int = 1_000_000) -> None:
        """Show late: keep the newest lines out of the next look-ups."""
        run = self.run(run_id)
        run.hidden, run.hidden_lookups = lines, lookups

    def stale(self, run_id: str, lines: int, resumes: int = 1, *, step: bool = True) -> None:
        """Answer the next resumes as if the newest lines were not there; see `Run` for the step."""
        run = self.run(run_id)
        run.stale, run.stale_resumes, run.stale_step = lines, resumes, step

    def delete(self, run_id: str) -> None:
        """Delete a run; its id stays used up."""
        run = self.run(run_id)
        run.deleted = True
        self.store.save(run)

    def set_state(self, run_id: str, state: str, heartbeat_at: Optional[str] = None) -> None:
        """Let a run look as if somebody else writes it (or has stopped)."""
        run = self.run(run_id)
        run.state, run.heartbeat_at = state, heartbeat_at or now()

    def append(self, run_id: str, row: dict[str, Any]) -> None:
        """Add a history row as somebody else."""
        run = self.run(run_id)
        run.lines[max(run.lines, default=-1) + 1] = json.dumps(row)
        self.store.save(run)

    def state(self) -> dict[str, Any]:
        """Everything there is to see, as JSON."""
        with self.store.lock:
            runs = [
                {**asdict(run), "rows": run.rows, "config": run.config} for run in self.store.runs.values()
            ]
        return {"runs": runs, "requests": dict(self.requests), "unknown": self.store.unknown}

    def control(self, order: dict[str, Any]) -> None:
        """Do what another process asks for."""
        name = order["do"]
        if name not in {
            "fault", "heal", "set_latency", "refuse_history", "forbid",
            "hide", "stale", "delete", "set_state", "append",
        }:  # fmt: skip
            raise ValueError(f"no such order: {name}")
        getattr(self, name)(**order.get("with", {}))

    def fate(self, kind: str, group: str, run_id: Optional[str]) -> Optional[Fault]:
        """Count a request, and find the fault that hits it."""
        with self._lock:
            self.requests[kind] += 1
            return next((fault for fault in self._faults if fault.takes(kind, group, run_id)), None)

    def wait_for_release(self) -> None:
        """Hang until `heal` or `stop`."""
        self._released.wait()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    server_of: WandbServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/state":
            self._answer(200, self.server_of.state())
        else:
            self._answer(404, {"errors": [{"message": "not found"}]})

    def do_PUT(self) -> None:
        token = self.path.rsplit("/", 1)[-1]
        content = self._body()
        self._under_fault(
            "upload", "upload", None, lambda: (200, self.server_of.store.upload(token, content))
        )

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/control":
            self.server_of.control(json.loads(body))
            self._answer(200, {})
            return
        if self.path != "/graphql" and not _FILE_STREAM.match(self.path):
            self.server_of.fate(self.path, "other", None)
            self._answer(404, {"errors": [{"message": "not found"}]})
            return
        if not self._has_key():
            self.server_of.fate("401", "401", None)
            self._answer(401, {"errors": [{"message": "user is not logged in"}]})
            return
        stream = _FILE_STREAM.match(self.path)
        if stream:
            key: Key = tuple(unquote(part) for part in stream.groups())  # type: ignore[assignment]
            payload = json.loads(body or b"{}")
            self._under_fault("file_stream", "file_stream", key[2], lambda: self._file_stream(key, payload))
            return
        request = json.loads(body)
        found = _OPERATION.search(request["query"]) or _FIRST_FIELD.search(request["query"])
        operation = request.get("operationName") or (found.group(1) if found else "")
        variables = request.get("variables") or {}
        run_id = next((variables[name] for name in ("name", "run", "runName") if variables.get(name)), None)
        self._under_fault(operation, "graphql", run_id, lambda: self._graphql(operation, variables))

    def _file_stream(self, key: Key, payload: dict[str, Any]) -> tuple[int, Any]:
        if key not in self.server_of.runs:
            return 404, {"error": "run not found"}
        return 200, self.server_of.store.file_stream(key, payload)

    def _graphql(self, operation: str, variables: dict[str, Any]) -> tuple[int, Any]:
        try:
            return 200, {"data": self.server_of.store.graphql(operation, variables)}
        except GraphQLRefusal as error:
            return error.status, {"errors": [{"message": str(error)}], "data": None}

    def _under_fault(self, kind: str, group: str, run_id: Optional[str], act: Any) -> None:
        server = self.server_of
        fault = server.fate(kind, group, run_id)
        if server.latency:
            time.sleep(server.latency / 1000)
        action = fault.action if fault else "none"
        if action == "hang":
            server.wait_for_release()
        elif action == "status" and fault:
            self._answer(fault.status, {"errors": [{"message": fault.message}], "error": fault.message})
            return
        if action == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, answer = act()
        if action == "drop-after":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(status, answer)

    def _has_key(self) -> bool:
        expected = base64.b64encode(f"api:{self.server_of.key}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {expected}"

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        if os.environ.get("WANDB_SERVER_LOG"):
            super().log_message(format, *args)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--store", help="SQLite file that keeps the runs")
    parser.add_argument("--key", default="0123456789abcdef" * 2 + "01234567")
    parser.add_argument("--entity", default="team")
    parser.add_argument("--latency-ms", type=float, default=0)
    given = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with WandbServer(given.port, key=given.key, entity=given.entity, path=given.store) as server:
        server.set_latency(given.latency_ms)
        print(server.url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
