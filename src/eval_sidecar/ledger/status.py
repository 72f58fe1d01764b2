"""What is left to do for a model, and which results were made with other settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from eval_sidecar.ledger.ledger import Entry, Ledger
from eval_sidecar.ledger.settings import differences
from eval_sidecar.types import DENIED, Completeness

#: Checkpoints that are named if there are more with the same reason.
_NAMED = 3


def other_settings(ledger: Ledger) -> dict[str, list[int]]:
    """Return the steps of results that were made with other settings than the last start's, by their key."""
    current = (ledger.writer or {}).get("settings")
    found: dict[str, list[int]] = {}
    for entry in ledger.steps():
        key = entry.origin.settings
        if entry.result is not None and current is not None and key not in (None, current):
            found.setdefault(str(key), []).append(entry.step)
    return found


def settings_line(ledger: Ledger, *, force: bool = False) -> Optional[str]:
    """Return the warning about results that were made with other settings; None if there are none.

    Args:
        ledger: The ledger, with the current settings.
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


def unfinished(ledger: Ledger, *, expects_delivery: bool, expects_confirmation: bool) -> list[str]:
    """Return what should have been done and is not, one line each; empty if everything is done.

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
            again = "" if entry.failure.final else " (will retry)"
            lines.append(f"{entry.name}: evaluation failed{again}: {entry.failure.error}{log}")
        elif entry.verdict == Completeness.GONE and not entry.processed:
            lines.append(f"{entry.name}: was deleted before it could be evaluated")
        elif denied := why_denied(entry):
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
        lines.append("delivery: the run's table may not show all of its points; it will be sent again")
    return lines


def waiting(ledger: Ledger) -> list[str]:
    """Return which checkpoints have not failed and have no result yet, and why: one line a reason."""
    names: dict[str, list[str]] = {}
    why = "evaluation is paused" if ledger.shared_failure.pauses else ledger.busy
    for entry in ledger.steps():
        if why_denied(entry):
            continue  # `unfinished` says so: waiting alone does not help
        is_abandoned = entry.verdict == Completeness.ABANDONED and not entry.processed
        if entry.running:
            reason = f"is being evaluated: {entry.running.state or 'running'}"
        elif entry.verdict == Completeness.COMPLETE and entry.is_pending and why:
            reason = why
        elif is_abandoned or entry.is_pending:
            facts = f" ({'; '.join(entry.evidence)})" if entry.evidence else ""
            reason = f"{entry.verdict or 'not looked at yet'}{facts}{f'; {why}' if why else ''}"
        else:
            continue
        names.setdefault(reason, []).append(entry.name)
    return [f"{_first_of(found)}: {reason}" for reason, found in names.items()]


def _first_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def why_denied(entry: Entry) -> Optional[str]:
    """Return why a checkpoint that is still to be evaluated cannot be read; None if it can."""
    if entry.processed or entry.failure:
        return None
    return next((fact for fact in entry.evidence if fact.startswith(DENIED)), None)
