"""Compares a ledger with what a server shows, point by point, and marks what has to be sent again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from eval_sidecar.ledger import CARRIED, CONFIRMED, PENDING, Delivery, Ledger
from eval_sidecar.trackers.base import ServerView


@dataclass(frozen=True)
class Comparison:
    """One model's ledger against its run.

    Attributes:
        confirmed: Steps that both have, with the same numbers.
        missing: Steps that the server lacks.
        unknown: Steps that the server has and the ledger does not know.
        different: Steps whose numbers differ.
        doubled: Steps that the server has more than once in the same revision.
        old_table: Whether the run's table and summary lack something of what the run has.
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
    """Whether a run's table, as far as the run says what is in it, lacks a point that was delivered."""
    described = {row.step: row.digest for row in view.described or ()}
    return view.described is not None and any(
        described.get(entry.step) != entry.delivery.digest
        for entry in ledger.steps()
        if entry.delivery and entry.delivery.status == CONFIRMED and entry.delivery.via != CARRIED
    )


def mark_for_repair(ledger: Ledger, view: ServerView) -> Ledger:
    """Make everything due that the server lacks or has with other numbers, and confirm the rest."""
    rows = view.newest_rows()
    changed = []
    for entry in ledger.steps():
        if entry.result is None:
            continue
        row = rows.get(entry.step)
        if row is None:
            delivery = Delivery(PENDING)
        elif row.shows(entry.result):
            delivery = Delivery(CONFIRMED, row.revision, entry.result.digest, row.index)
        else:
            delivery = Delivery(PENDING, row.revision + 1)
        changed.append(replace(entry, delivery=delivery))
    marked = ledger.with_entries(changed)
    return replace(marked, table_due=marked.table_due or table_is_old(marked, view))
