"""What a person wants to know of a ledger: counts, what runs, the best so far, what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from eval_sidecar.ledger.ledger import Entry, Ledger
from eval_sidecar.ledger.results import best_step
from eval_sidecar.ledger.settings import differences
from eval_sidecar.types import DENIED, HEADLINE, Completeness, DeliveryStatus


def describe(ledger: Ledger, state_file: Path) -> dict[str, Any]:
    """A ledger's state as plain JSON, the same for `status --json` and for people."""
    entries = ledger.steps()
    current = [entry for entry in entries if not entry.is_superseded]
    results = {entry.step: entry.result.metrics for entry in current if entry.result}
    return {
        "model": ledger.model_dir,
        "run_id": ledger.run_id,
        "run_name": ledger.run_name,
        "state_file": str(state_file),
        "where": ledger.where,
        "evaluated": sum(entry.processed for entry in entries),
        "running": [_running(entry) for entry in entries if entry.running],
        "pending": sum(entry.is_pending for entry in entries),
        "waiting": [_waiting(entry) for entry in entries if entry.is_pending and not entry.running],
        "busy": ledger.busy,
        "warnings": list((ledger.writer or {}).get("warnings", ())),
        "paused": ledger.shared_failure.reason,
        "failed": sum(entry.has_failed for entry in entries),
        "gone": sum(entry.verdict == Completeness.GONE and not entry.processed for entry in entries),
        "abandoned": sum(
            entry.verdict == Completeness.ABANDONED and not entry.processed for entry in entries
        ),
        "undelivered": len(ledger.undelivered()),
        "unconfirmed": len(ledger.unconfirmed()),
        "best": {
            metric: {"step": step, "value": results[step][metric]}
            for metric in HEADLINE
            if (step := best_step(results, metric)) is not None
        },
        "superseded": [entry.name for entry in entries if entry.is_superseded],
        "other_settings": [step for steps in other_settings(ledger).values() for step in steps],
        "place": str(ledger.places[0]) if ledger.places else None,
        "last_error": last_error(ledger),
        "updated": ledger.updated,
    }


def other_settings(ledger: Ledger) -> dict[str, list[int]]:
    """The steps of results that were made with other settings than the last start's, by their key."""
    current = (ledger.writer or {}).get("settings")
    found: dict[str, list[int]] = {}
    for entry in ledger.steps():
        key = entry.origin.settings
        if entry.result is not None and current is not None and key not in (None, current):
            found.setdefault(str(key), []).append(entry.step)
    return found


def settings_line(ledger: Ledger, *, force: bool = False) -> Optional[str]:
    """What to say at the start of results that were made with other settings; None if all are alike.

    Args:
        ledger: With the settings of now.
        force: Whether all are evaluated again anyway.
    """
    found = other_settings(ledger)
    if not found:
        return None
    key = max(found, key=lambda key: len(found[key]))
    now = ledger.settings.get((ledger.writer or {}).get("settings", ""), {})
    changes = ", ".join(differences(ledger.settings.get(key, {}), now))
    count = sum(map(len, found.values()))
    many = f"{count} earlier results were" if count > 1 else "1 earlier result was"
    return (
        f"settings changed: {changes}; {many} made with {'others' if len(found) > 1 else 'the old ones'};"
        f" {'evaluated again' if force else '--force-eval evaluates them again'}"
    )


def delivery_state(entry: Entry) -> str:
    """How far the point of an entry's result has come, in words."""
    if (due := entry.due()) is not None:
        return due.status
    return "not sent" if entry.is_withheld else DeliveryStatus.CONFIRMED


def origin_lines(ledger: Ledger, entry: Entry, there: Optional[str] = None) -> list[str]:
    """What a result was made of, for a person.

    Args:
        ledger: What is known of the model.
        entry: The checkpoint.
        there: The identity of what its folder holds at this moment, if that was read.
    """
    origin = entry.origin
    when = f", evaluated {origin.at}" if origin.at else ""
    if entry.is_superseded:
        of = "weights that were there before: it is evaluated again"
    elif there not in (None, origin.identity):
        of = "other weights than the folder holds now"
    else:
        of = "these weights"
    lines = [f"of {origin.identity}, {of}{when}" if origin.identity else f"of weights that are unknown{when}"]
    settings = ledger.settings.get(origin.settings or "")
    if settings is None:
        return [*lines, "settings unknown"]
    now = ledger.settings.get((ledger.writer or {}).get("settings", ""), settings)
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    changed = differences(settings, now)
    return [*lines, f"settings: {told}", *([f"settings now: {', '.join(changed)}"] if changed else [])]


def list_origins(ledger: Ledger) -> list[dict[str, Any]]:
    """What each checkpoint's weights are, and what its result was made of, as plain JSON."""
    return [
        {
            "step": entry.step,
            "weights": entry.content and entry.content.identity,
            "saved": entry.content and entry.content.since,
            "result_of": entry.origin.identity,
            "evaluated_at": entry.origin.at,
            "settings": entry.origin.settings,
        }
        for entry in ledger.steps()
    ]


def last_error(ledger: Ledger) -> Optional[str]:
    """The newest thing that went wrong and is not mended; None where all is well."""
    failures = [(entry.failure.time, entry) for entry in ledger.steps() if entry.failure]
    if failures:
        _, entry = max(failures, key=lambda pair: (pair[0], pair[1].step))
        assert entry.failure is not None
        where = f"; log: {entry.failure.log}" if entry.failure.log else ""
        return f"{entry.name}: {entry.failure.error}{where}"
    return f"delivery: {ledger.problem}" if ledger.problem else None


def unfinished(ledger: Ledger, *, expects_delivery: bool, expects_confirmation: bool) -> list[str]:
    """What should have been done and is not, one line each; empty where everything is done.

    Args:
        ledger: The ledger after a pass.
        expects_delivery: Whether points were to be delivered at all.
        expects_confirmation: Whether they could be read back.
    """
    paused = ledger.shared_failure
    lines = [paused.reason] if paused.reason else []
    for entry in ledger.steps():
        if entry.failure and paused.pauses and entry.step in paused.steps:
            continue  # one cause, one line
        if entry.failure:
            log = f"; log: {entry.failure.log}" if entry.failure.log else ""
            again = "" if entry.failure.final else " (it is tried again)"
            lines.append(f"{entry.name}: evaluation failed{again}: {entry.failure.error}{log}")
        elif entry.verdict == Completeness.GONE and not entry.processed:
            lines.append(f"{entry.name}: was deleted before it could be evaluated")
        elif denied := _why_denied(entry):
            lines.append(f"{entry.name}: {denied}")
    for entries, wanted, words in (
        (ledger.undelivered(), expects_delivery, "not delivered"),
        (ledger.unconfirmed(), expects_confirmation, "sent, but not confirmed"),
    ):
        if wanted and entries:
            names = ", ".join(entry.name for entry in entries)
            why = f": {ledger.problem}" if ledger.problem else ""
            lines.append(f"{len(entries)} points {words}: {names}{why}")
    if expects_delivery and ledger.problem and not any(ledger.problem in line for line in lines):
        lines.append(f"delivery: {ledger.problem}")
    elif expects_confirmation and ledger.table_due and not lines:
        lines.append("delivery: the run's table may not show all of its points; it is sent again")
    return lines


def waiting(ledger: Ledger) -> list[str]:
    """What has not failed and has no result yet, each with what it waits for, one line each."""
    lines = []
    for entry in ledger.steps():
        if _why_denied(entry):
            continue  # `unfinished` says so: waiting alone does not help
        is_abandoned = entry.verdict == Completeness.ABANDONED and not entry.processed
        if entry.running:
            lines.append(f"{entry.name}: is under way: {entry.running.state or 'not ended yet'}")
        elif is_abandoned or entry.is_pending:
            facts = f" ({'; '.join(entry.evidence)})" if entry.evidence else ""
            why = "evaluation is paused" if ledger.shared_failure.pauses else ledger.busy
            busy = f"; {why}" if why else ""
            lines.append(f"{entry.name}: {entry.verdict or 'not looked at yet'}{facts}{busy}")
    return lines


def _why_denied(entry: Entry) -> Optional[str]:
    """Why a checkpoint may not be read that is still to be evaluated; None if nobody forbids it."""
    if entry.processed or entry.failure:
        return None
    return next((fact for fact in entry.evidence if fact.startswith(DENIED)), None)


def _running(entry: Entry) -> dict[str, Any]:
    assert entry.running is not None
    return {
        "checkpoint": entry.name,
        "step": entry.step,
        "started_at": entry.running.started_at,
        "log": entry.running.log,
        "attempt": entry.attempts + 1,
        "evictions": list(entry.evictions),
        "state": entry.running.state,
        "job": {
            key: entry.running.handle[key]
            for key in ("launcher", "job_id", "name", "pid", "devices")
            if key in entry.running.handle
        },
    }


def _waiting(entry: Entry) -> dict[str, Any]:
    return {
        "checkpoint": entry.name,
        "step": entry.step,
        "verdict": entry.verdict,
        "pinned": entry.pinned,
        "evictions": list(entry.evictions),
    }
