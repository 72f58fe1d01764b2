"""What a W&B server keeps of its runs, for `wandb_server`: GraphQL operations and history lines.

Only what the client asks for in a session and in a look-up is answered. A history line belongs at its
offset: sent again it overwrites, as on the service.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import threading
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Optional

from wandb_answers import Key, WandbAnswers


class GraphQLRefusal(Exception):
    """An answer other than 200 to a GraphQL operation."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def now() -> str:
    """The time as the service writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Run:
    """One run.

    Attributes:
        lines: History lines by offset.
        raw_config: Config as sent: values wrapped, and the client's own `_wandb` entry.
        summary: Last summary sent.
        tables: Every table stored as an artifact, in order: `{"columns": …, "data": …}`.
        files: Names of all files uploaded for the run.
        sessions: How often a client opened the run.
        hidden: Newest lines that look-ups do not show, for the next `hidden_lookups` of them.
        stale: Newest lines that resumes do not know of, for the next `stale_resumes` of them.
        stale_step: Whether such a resume says the older step too. The client takes the higher of what the
            history's tail and the summary say for where the run stands, and writes at the line count.
    """

    entity: str
    project: str
    run_id: str
    name: Optional[str] = None
    group: Optional[str] = None
    job_type: Optional[str] = None
    state: str = "running"
    exit_code: Optional[int] = None
    heartbeat_at: str = field(default_factory=now)
    lines: dict[int, str] = field(default_factory=dict)
    events: int = 0
    raw_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sessions: int = 0
    deleted: bool = False
    hidden: int = 0
    hidden_lookups: int = 0
    hidden_now: int = 0
    stale: int = 0
    stale_resumes: int = 0
    stale_now: int = 0
    stale_step: bool = True

    @property
    def rows(self) -> list[dict[str, Any]]:
        """History rows in the order of their offsets."""
        return [json.loads(self.lines[offset]) for offset in sorted(self.lines)]

    @property
    def config(self) -> dict[str, Any]:
        """What the user of the client gave as config."""
        return {key: value.get("value") for key, value in self.raw_config.items() if key != "_wandb"}

    @property
    def points(self) -> list[tuple[int, int]]:
        """Pairs of `_step` and checkpoint step, in the order of their offsets."""
        return [(row["_step"], row["checkpoint_step"]) for row in self.rows if "checkpoint_step" in row]

    def shown(self) -> list[dict[str, Any]]:
        """The rows that the current look-up sees."""
        rows = self.rows
        return rows[: len(rows) - self.hidden_now] if self.hidden_now else rows

    def begin_lookup(self) -> None:
        """Decide what this look-up sees; the first query of each begins one."""
        self.hidden_now = self.hidden if self.hidden_lookups > 0 else 0
        self.hidden_lookups = max(0, self.hidden_lookups - 1)

    def begin_resume(self) -> None:
        """Decide what this session is told of the run."""
        self.stale_now = self.stale if self.stale_resumes > 0 else 0
        self.stale_resumes = max(0, self.stale_resumes - 1)

    def resumed(self) -> list[str]:
        """The lines that the current session is told of."""
        lines = [self.lines[offset] for offset in sorted(self.lines)]
        return lines[: len(lines) - self.stale_now]


class Store(WandbAnswers):
    """All runs, kept in memory and, where a file is given, in SQLite."""

    def __init__(self, entity: str, path: Optional[str] = None) -> None:
        super().__init__()
        self.entity = entity
        self.runs: dict[Key, Run] = {}
        self.lock = threading.RLock()
        self.refused: set[str] = set()
        self.forbidden: set[str] = set()
        self.unknown: list[str] = []
        self.base_url = ""
        self._uploads: dict[str, tuple[Key, str]] = {}
        self._database = sqlite3.connect(path, check_same_thread=False) if path else None
        if self._database:
            self._database.execute("pragma synchronous = off")
            self._database.execute("create table if not exists runs (key text primary key, run text)")
            for (text,) in self._database.execute("select run from runs"):
                run = Run(**{**json.loads(text)})
                run.lines = {int(offset): line for offset, line in run.lines.items()}
                self.runs[run.entity, run.project, run.run_id] = run

    def save(self, run: Run) -> None:
        """Write one run to the file, where there is one."""
        if self._database:
            text = json.dumps(asdict(run))
            self._database.execute(
                "insert or replace into runs values (?, ?)",
                (json.dumps([run.entity, run.project, run.run_id]), text),
            )
            self._database.commit()

    def close(self) -> None:
        """Close the file."""
        if self._database:
            self._database.close()

    # -- what clients send -----------------------------------------------------------------------

    def file_stream(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        """Take history lines, the summary, and the end of a session."""
        with self.lock:
            run = self.runs[key]
            run.heartbeat_at = now()
            files = body.get("files") or {}
            history = files.get("wandb-history.jsonl")
            if history:
                for place, line in enumerate(history["content"], history["offset"]):
                    run.lines[place] = line
            for line in (files.get("wandb-summary.json") or {}).get("content", []):
                run.summary = json.loads(line)
            if body.get("complete"):
                run.exit_code = body.get("exitcode", 0)
                run.state = "finished" if run.exit_code == 0 else "failed"
            elif body:
                run.state = "running"
            self.save(run)
            return {"limits": {}}

    def upload(self, token: str, content: bytes) -> None:
        """Take a file that an upload address was handed out for."""
        with self.lock:
            key, name = self._uploads[token]
            run = self.runs.get(key)
            if run is None:
                return
            run.files.append(name)
            # A table comes twice: as a file of the run, and in an artifact.
            if name.endswith(".table.json") and not name.startswith("media/"):
                run.tables.append(json.loads(content))
            self.save(run)

    def upload_url(self, key: Key, name: str) -> str:
        """An address that takes one file."""
        token = f"{len(self._uploads)}"
        self._uploads[token] = (key, name)
        return f"{self.base_url}/upload/{token}"

    # -- GraphQL -----------------------------------------------------------------------------------

    def graphql(self, operation: str, variables: dict[str, Any]) -> Any:
        """Answer one operation with the contents of `data`.

        Raises:
            GraphQLRefusal: the operation is unknown, or switched off.
        """
        with self.lock:
            answer = getattr(self, f"_do_{operation}", None)
            if answer is None:
                self.unknown.append(operation)
            if answer is None or operation in self.refused:
                raise GraphQLRefusal(400, f'Cannot query field of operation "{operation}"')
            return answer(variables)

    def _find(self, variables: dict[str, Any], name: str) -> Optional[Run]:
        entity = variables.get("entity") or variables.get("entityName") or self.entity
        run = self.runs.get((entity, variables.get("project") or "uncategorized", variables[name]))
        return None if run is None or run.deleted else run

    def _do_Viewer(self, variables: dict[str, Any]) -> Any:
        names = [{"node": {"name": self.entity}}]
        return {
            # Older clients derive from this what the server can do.
            "serverInfo": {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "latestLocalVersionInfo": None},
            "viewer": {
                "id": "viewer",
                "entity": self.entity,
                "username": "tester",
                "name": "tester",
                "email": "tester@localhost",
                "admin": False,
                "flags": "{}",
                "teams": {"edges": names},
                "apiKeys": {"edges": []},
            },
        }

    _do_GetDefaultEntity = _do_GetViewer = _do_viewer = _do_Viewer

    def _do_RunResumeStatus(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "name")
        bucket = None
        if run is not None:
            run.begin_resume()
            lines = run.resumed()
            summary = dict(run.summary)
            if run.stale_now and run.stale_step:
                summary["_step"] = json.loads(lines[-1])["_step"] if lines else None
            bucket = {
                "id": run.run_id,
                "name": run.run_id,
                "displayName": run.name,
                "summaryMetrics": json.dumps(summary),
                "config": json.dumps(run.raw_config),
                "historyLineCount": len(lines),
                "eventsLineCount": run.events,
                "logLineCount": 0,
                "historyTail": json.dumps(lines[-1:]),
                "eventsTail": "[]",
                "tags": [],
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        entity = {"id": self.entity, "name": variables.get("entity") or self.entity}
        return {"model": {"id": "model", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def _do_UpsertBucket(self, variables: dict[str, Any]) -> Any:
        entity = variables.get("entity") or self.entity
        project = variables.get("project") or "uncategorized"
        if entity in self.forbidden:
            raise GraphQLRefusal(403, "permission denied")
        key = (entity, project, variables["name"])
        run = self.runs.get(key)
        if run is not None and run.deleted:
            message = f"run {key[2]} was previously created and deleted; try a new run id"
            raise GraphQLRefusal(409, message)
        inserted = run is None
        if run is None:
            run = self.runs[key] = Run(*key)
        if variables.get("state") or variables.get("host") or inserted:
            run.sessions += 1
        run.name = variables.get("displayName") or run.name
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        if variables.get("config"):
            run.raw_config = json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary = json.loads(variables["summaryMetrics"])
        run.state, run.heartbeat_at = "running", now()
        self.save(run)
        return {
            "upsertBucket": {
                "bucket": {
                    "id": base64.b64encode("/".join(key).encode()).decode(),
                    "name": run.run_id,
                    "displayName": run.name,
                    "description": None,
                    "config": json.dumps(run.raw_config),
                    "sweepName": None,
                    "project": {"id": "1", "name": project, "entity": {"id": "1", "name": entity}},
                    "historyLineCount": len(run.resumed()),
                },
                "inserted": inserted,
            }
        }

    def _do_CreateRunFiles(self, variables: dict[str, Any]) -> Any:
        key = (variables["entity"], variables["project"], variables["run"])
        files = [{"name": name, "uploadUrl": self.upload_url(key, name)} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _do_MarkRunFilesUploaded(self, variables: dict[str, Any]) -> Any:
        return {"markRunFilesUploaded": {"success": True}}

    # -- look-ups ------------------------------------------------------------------------------------

    def _do_Run(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "name")
        if run is None:
            return {"project": {"run": None}}
        run.begin_lookup()
        fields = {
            "id": run.run_id,
            "projectId": "1",
            "tags": [],
            "name": run.run_id,
            "displayName": run.name,
            "sweepName": None,
            "state": run.state,
            "config": json.dumps(run.raw_config),
            "group": run.group,
            "jobType": run.job_type,
            "commit": None,
            "readOnly": False,
            "createdAt": run.heartbeat_at,
            "heartbeatAt": run.heartbeat_at,
            "description": None,
            "notes": None,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.shown()),
            "historyKeys": self._history_keys(run),
            "user": {"name": "tester", "username": "tester"},
        }
        return {"project": {"run": fields}}

    def _do_RunSummary(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "run")
        if run is None:
            return {"model": {"bucket": None}}
        found = {"summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.raw_config)}
        return {"model": {"bucket": found}}

    def _do_RunHistoryKeys(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "name")
        return {"project": {"run": {"historyKeys": self._history_keys(run)} if run else None}}

    @staticmethod
    def _history_keys(run: Run) -> dict[str, Any]:
        last = max((int(row["_step"]) for row in run.shown()), default=-1)
        return {"lastStep": last, "keys": {}, "sets": []}

    def _do_RunFiles(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "name")
        wanted = [name for name in variables["fileNames"] if run and name in run.files]
        edges = [{"node": {"id": name, "name": name, "sizeBytes": 1}, "cursor": name} for name in wanted]
        files = {"edges": edges, "pageInfo": {"hasNextPage": False, "endCursor": None}}
        return {"project": {"run": {"fileCount": len(run.files), "files": files} if run else None}}

    def _do_RunParquetHistory(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "runName")
        live = [{"_step": row["_step"]} for row in run.shown()] if run else []
        return {
            "project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": live}} if run else None}
        }

    def _do_HistoryPage(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "run")
        rows = self._between(run, variables["minStep"], variables["maxStep"]) if run else []
        history = [json.dumps(row) for row in rows[: variables["pageSize"]]]
        return {"project": {"run": {"history": history} if run else None}}

    def _do_SampledHistoryPage(self, variables: dict[str, Any]) -> Any:
        run = self._find(variables, "run")
        spec = json.loads(variables["spec"])
        rows = self._between(run, spec["minStep"], spec["maxStep"]) if run else []
        keys = spec["keys"]
        rows = [{key: row[key] for key in keys} for row in rows if all(key in row for key in keys)]
        return {"project": {"run": {"sampledHistory": [rows[: spec["samples"]]]} if run else None}}

    @staticmethod
    def _between(run: Run, first: int, stop: int) -> list[dict[str, Any]]:
        return [row for row in run.shown() if first <= row["_step"] < stop]
