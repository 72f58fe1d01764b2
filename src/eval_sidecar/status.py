"""What a person wants to know of a ledger: counts, what runs, the best so far, what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from eval_sidecar.completeness import ABANDONED, DENIED, GONE
from eval_sidecar.ledger import Entry, Ledger
from eval_sidecar.results import best_step

#: The metrics that have a best, where the results hold them.
HEADLINE = ("HR@10", "NDCG@10")


def describe(ledger: Ledger, state_file: Path) -> dict[str, Any]:
    """A ledger's state as plain JSON, the same for `status --json` and for people."""
    entries = ledger.steps()
    results = {entry.step: entry.result.metrics for entry in entries if entry.result}
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
        "failed": sum(entry.has_failed for entry in entries),
        "gone": sum(entry.verdict == GONE and not entry.processed for entry in entries),
        "abandoned": sum(entry.verdict == ABANDONED and not entry.processed for entry in entries),
        "undelivered": len(ledger.undelivered()),
        "unconfirmed": len(ledger.unconfirmed()),
        "best": {
            metric: {"step": step, "value": results[step][metric]}
            for metric in HEADLINE
            if (step := best_step(results, metric)) is not None
        },
        "last_error": last_error(ledger),
        "updated": ledger.updated,
    }


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
    lines = []
    for entry in ledger.steps():
        if entry.failure:
            log = f"; log: {entry.failure.log}" if entry.failure.log else ""
            again = "" if entry.failure.final else " (it is tried again)"
            lines.append(f"{entry.name}: evaluation failed{again}: {entry.failure.error}{log}")
        elif entry.verdict == GONE and not entry.processed:
            lines.append(f"{entry.name}: was deleted before it could be evaluated")
        elif not entry.processed and (denied := [fact for fact in entry.evidence if fact.startswith(DENIED)]):
            lines.append(f"{entry.name}: {denied[0]}")
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
        is_abandoned = entry.verdict == ABANDONED and not entry.processed
        if entry.running:
            lines.append(f"{entry.name}: is under way: {entry.running.state or 'not ended yet'}")
        elif is_abandoned or entry.is_pending:
            facts = f" ({'; '.join(entry.evidence)})" if entry.evidence else ""
            busy = f"; {ledger.busy}" if ledger.busy else ""
            lines.append(f"{entry.name}: {entry.verdict or 'not looked at yet'}{facts}{busy}")
    return lines


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
