"""Compares a ledger with what a server shows: what is confirmed, what must be sent again, what differs.

Pure: nothing here reads, sends or saves.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from eval_sidecar.ledger.ledger import CARRIED, Delivery, Ledger
from eval_sidecar.trackers.base import ServerRow, ServerView
from eval_sidecar.types import DeliveryStatus, Result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """One model's ledger against its run.

    Attributes:
        confirmed: Steps that both have, with the same numbers.
        missing: Steps that the server lacks.
        unknown: Steps that the server has and the ledger does not know.
        different: Steps whose numbers differ.
        doubled: Steps that the server has more than once with the same revision.
        old_table: Whether the run's table and summary lack something that its rows have.
    """

    confirmed: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()
    different: tuple[int, ...] = ()
    doubled: tuple[int, ...] = ()
    old_table: bool = False

    @property
    def agrees(self) -> bool:
        """Whether ledger and server say the same."""
        return not (self.missing or self.unknown or self.different or self.doubled or self.old_table)


def compare(ledger: Ledger, view: ServerView) -> Comparison:
    """Compare every result of a ledger, however it came to be delivered, with a look-up."""
    rows = view.newest_rows()
    results = {entry.step: entry.result for entry in ledger.steps() if entry.result}
    known = {entry.step for entry in ledger.steps() if entry.result or entry.listed}
    on_both = sorted(results.keys() & rows.keys())
    same = [step for step in on_both if rows[step].shows(results[step])]
    counts = Counter((row.step, row.revision) for row in view.rows)
    return Comparison(
        confirmed=tuple(same),
        missing=tuple(sorted(results.keys() - rows.keys())),
        unknown=tuple(sorted(rows.keys() - known)),
        different=tuple(step for step in on_both if step not in same),
        doubled=tuple(sorted({step for (step, _), count in counts.items() if count > 1})),
        old_table=table_is_old(ledger, view),
    )


def table_is_old(ledger: Ledger, view: ServerView) -> bool:
    """Return whether a run's table lacks a delivered point, as far as the run says what is in it."""
    summary_rows = {row.step: row.digest for row in view.summary_rows or ()}
    return view.summary_rows is not None and any(
        summary_rows.get(entry.step) != entry.delivery.digest
        for entry in ledger.steps()
        if entry.delivery and entry.delivery.is_confirmed and entry.delivery.via != CARRIED
    )


def reconcile(ledger: Ledger, view: ServerView, now: float) -> Ledger:
    """Bring a ledger's deliveries into agreement with what the server shows.

    A point is confirmed if its latest row on the server has its numbers. Other numbers there make it
    due as the next revision. A confirmed point that is no longer shown was overwritten, by a client
    that resumed from a stale line count: it is looked up again, and sent if it is still missing. A run
    whose summary and table lack what its rows show gets them again.
    """
    rows = view.newest_rows()
    changed = {}
    for entry in ledger.steps():
        if entry.result is None or entry.delivery is None or entry.delivery.via == CARRIED:
            continue
        shown = rows.get(entry.step)
        if shown is None:
            if entry.delivery.is_confirmed:
                log.warning("%s: was on the server and is no longer shown", entry.name)
                changed[entry.step] = entry.delivery.missing(now)
        elif entry.due() is not None:
            changed[entry.step] = _shown(entry.result, shown, entry.delivery)
    ledger = ledger.with_deliveries(changed)
    return ledger.with_table_due(True) if table_is_old(ledger, view) else ledger


def mark_for_repair(ledger: Ledger, view: ServerView) -> Ledger:
    """Make everything due that the server lacks or has with other numbers, and confirm the rest.

    Unlike `reconcile`, this trusts only the server, not what the ledger says of earlier deliveries.
    """
    rows = view.newest_rows()
    marked = ledger.with_deliveries(
        {
            entry.step: _shown(entry.result, rows[entry.step], Delivery())
            if entry.step in rows
            else Delivery()
            for entry in ledger.steps()
            if entry.result is not None
        },
    )
    return marked.with_table_due(marked.table_due or table_is_old(marked, view))


def with_changes_due(ledger: Ledger) -> Ledger:
    """Make results due again that have changed since they were sent, if nothing can be read back."""
    changed = {
        entry.step: Delivery(DeliveryStatus.PENDING, entry.delivery.revision + 1, index=entry.delivery.index)
        for entry in ledger.due()
        if entry.delivery and entry.result and entry.delivery.is_sent
        if entry.delivery.digest != entry.result.digest
    }
    return ledger.with_deliveries(changed)


def _shown(result: Result, row: ServerRow, delivery: Delivery) -> Delivery:
    # A result that was sent from here is shown only if all of it is. Another may be an older script's, which
    # had fewer metrics.
    has_changed = delivery.digest not in (None, result.digest)
    if row.shows(result) and not (has_changed and row.lacks_metrics_of(result)):
        return delivery.confirmed(revision=row.revision, digest=result.digest, index=row.index)
    return Delivery(DeliveryStatus.PENDING, row.revision + 1)
