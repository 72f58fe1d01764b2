"""The format of a ledger's file: writes this version, reads this one and the first scripts'.

It keeps the key fields that the first scripts wrote (``processed_steps``, ``failed_steps``, ``table_rows``
and others), so that people and scripts can still read them; the rest is under ``checkpoints``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.ledger.ledger import CARRIED, Delivery, Entry, Failure, Ledger, Running
from eval_sidecar.ledger.shared_failure import SharedFailure
from eval_sidecar.system.files import encode
from eval_sidecar.types import (
    TABLE_COLUMNS,
    Completeness,
    Content,
    DeliveryStatus,
    Forced,
    Origin,
    Place,
    Result,
    digest,
)

VERSION = 2

_NEXT = ",\n "
#: By step, an entry and its texts in ``table_rows`` and ``checkpoints``.
Encoded = dict[int, tuple[Entry, str, str]]


def to_text(ledger: Ledger, encoded: Optional[Encoded] = None) -> str:
    """Return the file's content.

    Args:
        ledger: What to write.
        encoded: Each entry as it was last written, with its two texts; updated here. A change
            concerns one or two of thousands of checkpoints. None if the file is written only once, which
            is faster without.
    """
    parts = {key: encode(value) for key, value in _about_model(ledger).items()}
    if encoded is None:
        entries = ledger.steps()
        parts["table_rows"] = encode([_table_row(entry) for entry in entries if entry.result is not None])
        parts["checkpoints"] = encode({str(entry.step): _details(entry) for entry in entries})
    else:
        rows, details = _in_pieces(ledger, encoded)
        parts["table_rows"] = f"[{_NEXT.join(rows)}]"
        parts["checkpoints"] = f"{{{_NEXT.join(details)}}}"
    return f"{{{_NEXT.join(f'{encode(key)}: {text}' for key, text in parts.items())}}}\n"


def _in_pieces(ledger: Ledger, encoded: Encoded) -> tuple[list[str], list[str]]:
    rows, details = [], []
    for entry in ledger.steps():
        known = encoded.get(entry.step)
        if known is None or known[0] is not entry:
            row = "" if entry.result is None else encode(_table_row(entry))
            known = encoded[entry.step] = (entry, row, f'"{entry.step}": {encode(_details(entry))}')
        rows += [known[1]] if known[1] else []
        details.append(known[2])
    return rows, details


def _about_model(ledger: Ledger) -> dict[str, Any]:
    """Return all keys of the file but ``table_rows`` and ``checkpoints``."""
    entries = ledger.steps()
    return {
        **ledger.extra,
        "version": VERSION,
        "model_dir": ledger.model_dir,
        "run_id": ledger.run_id,
        "run_name": ledger.run_name,
        "processed_steps": [entry.step for entry in entries if entry.processed],
        "failed_steps": {
            str(entry.step): {**_present(vars(entry.failure)), "attempts": entry.attempts}
            for entry in entries
            if entry.failure is not None
        },
        "last_seen_step": max(ledger.entries, default=None),
        "last_update_time": ledger.updated,
        "provable": ledger.provable,
        "session_open": ledger.session_open,
        "table_due": ledger.table_due,
        "problem": ledger.problem,
        "busy": ledger.busy,
        "shared_failure": _present(vars(ledger.shared_failure)),
        "where": ledger.where,
        "places": [vars(place) for place in ledger.places],
        "moved": ledger.moved,
        "settings": ledger.settings,
        "forced": _present(vars(ledger.forced)),
        "writer": ledger.writer,
    }


def _table_row(entry: Entry) -> dict[str, Any]:
    assert entry.result is not None
    own = {"checkpoint_step": entry.step, "checkpoint_name": entry.name, "metrics_path": entry.result.path}
    return {**own, **entry.result.metrics, **own}


def _details(entry: Entry) -> dict[str, Any]:
    result = entry.result
    return _present(
        {
            "verdict": entry.verdict,
            "evidence": list(entry.evidence) or None,
            "first_seen": entry.first_seen,
            "pinned": entry.pinned or None,
            "running": _running(entry.running) if entry.running else None,
            # Not inside "running": an older version refuses unknown keys there.
            "evaluates": _origin(entry.running.origin) if entry.running else None,
            "evictions": list(entry.evictions) or None,
            "digest": result.digest if result else None,
            "stamp": list(result.stamp) if result else None,
            "left_out": (list(result.left_out) or None) if result else None,
            "delivery": _present(vars(entry.delivery)) if entry.delivery else None,
            "content": vars(entry.content) if entry.content else None,
            "origin": _origin(entry.origin),
            "superseded": entry.is_superseded or None,
            "round": entry.round or None,
        }
    )


def _running(running: Running) -> dict[str, Any]:
    return {key: item for key, item in _present(vars(running)).items() if key != "origin"}


def _origin(origin: Origin) -> Optional[dict[str, Any]]:
    return _present(vars(origin)) or None


def _present(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


_OWN_KEYS = {*_about_model(Ledger("", "", "")), "table_rows", "checkpoints"}


def from_json(value: Mapping[str, Any], path: Path) -> Ledger:
    """Read the file's content, of this version or of the first scripts'.

    In those, a processed step is one that was logged: it is taken as delivered and never sent again.
    A step that a user took out of ``processed_steps`` is evaluated again; what was sent is remembered.
    """
    first_version = int(value.get("version", 1)) < VERSION
    details = dict(value.get("checkpoints") or {})
    rows = _rows(value.get("table_rows") or [], first_version)
    failures = _failures(value.get("failed_steps") or {})
    processed = {int(step) for step in value.get("processed_steps") or []}
    entries = {}
    for step in sorted({*map(int, details), *failures, *processed, *(() if not first_version else rows)}):
        failure, attempts = failures.get(step, (None, 0))
        detail = details.get(str(step)) or {}
        # A superseded result remains, although its step is not processed.
        has_result = step in processed or bool(detail.get("superseded"))
        entry = _entry(step, detail, rows.get(step) if has_result else None)
        if first_version and step in processed:
            carried = Delivery(
                DeliveryStatus.CONFIRMED, digest=entry.result.digest if entry.result else None, via=CARRIED
            )
            entry = replace(entry, delivery=carried)
        entry = replace(entry, listed=step in processed and entry.result is None)
        entries[step] = replace(entry, failure=failure, attempts=0 if first_version else attempts)
    return Ledger(
        model_dir=str(value.get("model_dir") or path.stem.rpartition("_")[0]),
        run_id=str(value["run_id"]),
        run_name=str(value.get("run_name") or ""),
        entries=entries,
        provable=bool(value.get("provable", False)),
        session_open=bool(value.get("session_open", False)),
        table_due=bool(value.get("table_due", False)),
        problem=value.get("problem"),
        busy=value.get("busy"),
        shared_failure=_shared_failure(value.get("shared_failure") or {}),
        places=tuple(Place(**place) for place in value.get("places") or ()),
        moved=bool(value.get("moved", False)),
        settings=dict(value.get("settings") or {}),
        forced=Forced(**(value.get("forced") or {})),
        where=value.get("where"),
        writer=value.get("writer"),
        updated=value.get("last_update_time"),
        extra={key: item for key, item in value.items() if key not in _OWN_KEYS},
    )


def _entry(step: int, details: Mapping[str, Any], row: Optional[Mapping[str, Any]]) -> Entry:
    result = None
    delivery = _delivery(details["delivery"]) if details.get("delivery") else None
    if row is not None:
        metrics = _row_metrics(row)
        stamp = [*(details.get("stamp") or ()), 0, 0, 0]
        result = Result(
            metrics,
            str(row.get("metrics_path") or ""),
            digest(metrics),
            (stamp[0], stamp[1], stamp[2]),
            tuple(details.get("left_out") or ()),
        )
        if delivery and delivery.digest is not None and delivery.digest == details.get("digest"):
            # An earlier version hashed a metric that has the name of our own key, which no row can hold.
            delivery = replace(delivery, digest=result.digest)
    running = details.get("running")
    if running is not None:
        before = running.get("before")
        files = tuple((name, size, mtime) for name, size, mtime in running["fingerprint"])
        origin = Origin(**(details.get("evaluates") or {}))
        running = Running(
            **{**running, "fingerprint": files, "before": tuple(before) if before else None, "origin": origin}
        )
    content = details.get("content")
    return Entry(
        step=step,
        verdict=Completeness(details["verdict"]) if details.get("verdict") else None,
        evidence=tuple(details.get("evidence") or ()),
        first_seen=details.get("first_seen"),
        pinned=bool(details.get("pinned", False)),
        evictions=tuple(details.get("evictions") or ()),
        running=running,
        result=result,
        delivery=delivery,
        content=Content(**{**content, "folder": tuple(content["folder"])}) if content else None,
        origin=Origin(**(details.get("origin") or {})),
        round=int(details.get("round", 0)),
    )


def _shared_failure(value: Mapping[str, Any]) -> SharedFailure:
    lists = {name: tuple(value.get(name) or ()) for name in ("steps", "formats")}
    return SharedFailure(**{**value, **lists})


def _delivery(value: Mapping[str, Any]) -> Delivery:
    return Delivery(**{**value, "status": DeliveryStatus(value["status"])})


def _rows(value: Any, first_version: bool) -> dict[int, dict[str, Any]]:  # noqa: ANN401 - any older script's
    """Return table rows by step, from a list or ``{step: row}``; a row is an object or a list of the columns.

    The first scripts wrote some metrics as ``eval/<name>``. Since then that is a name like any other.
    """
    found = {}
    for row in value.values() if isinstance(value, dict) else value:
        named = row if isinstance(row, dict) else dict(zip(TABLE_COLUMNS, row))
        prefix = len("eval/") if first_version else 0
        found[int(named["checkpoint_step"])] = {
            key[prefix:] if key.startswith("eval/") else key: item for key, item in named.items()
        }
    return found


def _row_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(number)
        for key, number in row.items()
        if key != "checkpoint_step" and isinstance(number, (int, float)) and not isinstance(number, bool)
    }


def _failures(value: Any) -> dict[int, tuple[Failure, int]]:  # noqa: ANN401 - as older scripts wrote it
    """Return failures by step, from ``{step: {...}}``, ``{step: "error"}`` or a list of objects or steps."""
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = [
            (item.get("step", item.get("checkpoint_step")), item) if isinstance(item, dict) else (item, {})
            for item in value
        ]
    found = {}
    for step, item in items:
        record = item if isinstance(item, dict) else {"error": str(item)}
        time = record.get("time") or record.get("failed_at") or record.get("timestamp") or ""
        error = record.get("error") or record.get("reason") or "no reason was written down"
        failure = Failure(str(time), str(error), record.get("log"), bool(record.get("final", False)))
        found[int(step)] = (failure, int(record.get("attempts", 0)))
    return found
