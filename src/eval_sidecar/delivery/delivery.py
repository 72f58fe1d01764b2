"""Delivers a model's due points to a tracker, each exactly once, and proves it by reading back.

A point is pending -> sent -> confirmed. The intent is on disk before anything is sent, and only what
the server shows becomes confirmed. Everything is decided here, from the ledger and from look-ups;
trackers only read and append.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.delivery.reconcile import reconcile, with_changes_due
from eval_sidecar.delivery.run_owner import home_of, why_foreign
from eval_sidecar.errors import LockedError, ReadBackUnsupported, StaleView, StateError, TrackerError
from eval_sidecar.ledger.ledger import Delivery, Entry, Ledger
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.paths import TemporaryPaths
from eval_sidecar.system.accounts import server_address
from eval_sidecar.system.locks import held_lock, private_folder
from eval_sidecar.trackers.base import ServerView, Session, Tracker, plan_rows
from eval_sidecar.types import DeliveryStatus, ModelSpec, Point, digest

log = logging.getLogger(__name__)

#: Seconds between look-ups while a server may show rows late; the last one repeats.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_TABLE = "the table"


@dataclass(frozen=True)
class Report:
    """What one delivery did.

    Attributes:
        sent: Points sent now.
        confirmed: Points sent, now or earlier, that were now seen on the server.
        already: Points never sent from here that the server already has.
        unconfirmed: Points that were sent and not yet seen on the server.
        undelivered: Points that have not been sent.
        sent_table: Whether the run's table was sent, with points or without.
        problem: Why something is left to do, or None. A tracker that cannot be read back is not a problem:
            its points are unconfirmed.
        where: Address of the run, or folder of the offline session.
    """

    sent: int = 0
    confirmed: int = 0
    already: int = 0
    unconfirmed: int = 0
    undelivered: int = 0
    sent_table: bool = False
    problem: Optional[str] = None
    where: Optional[str] = None


def deliver(
    store: LedgerStore,
    tracker: Tracker,
    spec: ModelSpec,
    *,
    settle_seconds: float = 60.0,
    pause: Optional[Callable[[float], bool]] = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Deliver whatever is due. A tracker's failure is in the report and in the ledger, not raised.

    Args:
        store: The model's ledger.
        tracker: Where points go.
        spec: The model and its run.
        settle_seconds: How long a server may take to show a row that it has.
        pause: Waits for that many seconds; returns True if the program is asked to stop.
        clock: Seconds since the epoch.

    Raises:
        StateError: if the ledger cannot be saved; nothing was sent without its intent on disk.
    """
    before = store.ledger
    if not before.is_due:
        store.update(lambda ledger: ledger.with_problem(None))
        return Report(where=before.where)
    session = _Delivery(store, tracker, spec, settle_seconds, pause or threading.Event().wait, clock)
    problem: Optional[str] = None
    try:
        busy = f"run {spec.run_id}: another process on this machine is delivering to it; nothing was sent"
        with held_lock(_run_lock(spec), busy):
            session.run()
    except (TrackerError, LockedError) as error:
        problem = str(error)
    store.update(lambda ledger: ledger.with_problem(problem))
    return _report(before, store.ledger, session, problem)


def _run_lock(spec: ModelSpec) -> Path:
    """Return the lock file of a run, shared by all of a user's processes on this machine.

    Raises:
        TrackerError: if the folder for it is not this user's own.
    """
    # Without the entity: given or the key's default, it is the same run.
    name, paths = f"{server_address() or ''}|{spec.project}|{spec.run_id}", TemporaryPaths()
    try:
        private_folder(paths.private)
    except StateError as error:
        raise TrackerError(f"{error}; nothing was sent", nothing_sent=True) from error
    return paths.run_lock(name)


def _report(before: Ledger, after: Ledger, session: _Delivery, problem: Optional[str]) -> Report:
    sent = session.sent
    newly = {
        entry.step
        for entry in before.due()
        if (delivery := after.entry(entry.step).delivery) and delivery.is_confirmed
    }
    was_sent = {entry.step for entry in before.due() if entry.delivery and entry.delivery.is_sent}
    return Report(
        sent=len(sent),
        confirmed=len(newly & (sent | was_sent)),
        already=len(newly - sent - was_sent),
        unconfirmed=len(after.unconfirmed()),
        undelivered=len(after.undelivered()),
        sent_table=session.sent_table,
        problem=problem,
        where=after.where,
    )


class _Delivery:
    """One delivery of one model: look up, send what is certainly missing, look up again."""

    def __init__(
        self,
        store: LedgerStore,
        tracker: Tracker,
        spec: ModelSpec,
        settle_seconds: float,
        pause: Callable[[float], bool],
        clock: Callable[[], float],
    ) -> None:
        self.store = store
        self.tracker = tracker
        self.spec = spec
        self.settle_seconds = settle_seconds
        self.pause = pause
        self.clock = clock
        self.sent: set[int] = set()
        self.sent_table = False
        self._table_problem: Optional[str] = None
        self._waited = 0.0
        self._pauses = iter(_PAUSES)

    def run(self) -> None:
        try:
            session = self._send_what_is_missing()
            if session is not None:
                self._wait_for_confirmation(session)
        except ReadBackUnsupported as unsupported:
            if unsupported.rows and _last_known_index(self.store.ledger) < 0:
                raise TrackerError(
                    f"{unsupported}; this ledger does not list them, so nothing was sent"
                ) from unsupported
            # A sent point may have arrived: only what was never sent, or has changed, may be sent.
            self.store.update(with_changes_due)
            self._send(
                [entry for entry in self.store.ledger.due() if _status(entry) == DeliveryStatus.PENDING], None
            )
            if self._table_problem:
                raise TrackerError(self._without_table()) from unsupported

    def _send_what_is_missing(self) -> Optional[Session]:
        """Look up until it is certain what the server lacks, and send that. None if nothing was sent."""
        while True:
            view = self._look_up()
            hold = self._reason_to_hold(view)
            if hold is None:
                try:
                    return self._send(self.store.ledger.due(), view)
                except StaleView as stale:
                    hold = str(stale)
            if not self._waited:
                log.info("%s; waiting up to %.0f s before anything is sent", hold, self.settle_seconds)
            if not self._wait():
                raise TrackerError(f"{hold}; nothing was sent; will retry")

    def _reason_to_hold(self, view: ServerView) -> Optional[str]:
        """Return why nothing may be sent yet, or None."""
        ledger = self.store.ledger
        if not ledger.is_due:
            return None
        if view.writer and not ledger.session_open:
            return f"run {self.spec.run_id}: another process seems to write it ({view.writer})"
        fresh = [entry.name for entry in ledger.due() if self._may_still_show(entry)]
        if fresh and self._waited < self.settle_seconds:
            return f"run {self.spec.run_id}: sent before, not shown by the server yet: {', '.join(fresh)}"
        return None

    def _may_still_show(self, entry: Entry) -> bool:
        """Return whether a point was sent so recently that a server may hold it without showing it."""
        delivery = entry.due()
        if delivery is None or not delivery.is_sent or delivery.sent_at is None:
            return False
        age = self.clock() - delivery.sent_at
        return age < self.settle_seconds  # also if the clock was set back

    def _send(self, entries: Sequence[Entry], view: Optional[ServerView]) -> Optional[Session]:
        ledger = self.store.ledger
        if not entries and not (view and ledger.table_due):
            return None  # if nothing can be read back, a table alone would be sent in every pass
        points = _positioned(
            [entry.point(due.revision) for entry in entries if (due := entry.due())], ledger, self.spec
        )
        last_index = view.last_index if view else _last_known_index(ledger)
        rows = plan_rows(points, last_index)
        intents = {
            point.step: Delivery(
                DeliveryStatus.SENT, point.revision, _digest(ledger, point.step), index, self.clock()
            )
            for index, point in rows
        }
        marked = self.store.update(lambda now: now.sending(intents))
        start = view.last_index + 1 if view and view.knows_end else None
        try:
            table = _positioned(marked.points(), marked, self.spec)
            session = Session(self.spec, start, rows, table, _indices(marked), home_of(marked))
            receipt = self.tracker.send(session)
        except TrackerError as error:
            if not error.nothing_sent:
                raise
            self.store.update(lambda now: now.not_sent(ledger, intents))
            raise
        self.sent.update(intents)
        via = None if view else receipt.where
        table_due = view is not None or receipt.table_problem is not None
        # The look-up that follows saves it; if nothing can be read back, none follows.
        save = self.store.note if view else self.store.update
        save(lambda now: now.was_sent(receipt.where, via=via, steps=intents, table_due=table_due))
        self._table_problem = receipt.table_problem
        self.sent_table = receipt.table_problem is None
        return session

    def _wait_for_confirmation(self, session: Session) -> None:
        """Look up until the server shows everything that was sent, or for as long as that may take."""
        self._waited, self._pauses = 0.0, iter(_PAUSES)
        while True:
            view = self._look_up(session)
            missing = self._not_shown(self.store.ledger, view, session)
            if missing == [_TABLE] and self._table_problem:
                raise TrackerError(self._without_table())
            if not missing:
                return
            if not self._wait():
                raise TrackerError(
                    f"run {self.spec.run_id}: {', '.join(missing)} sent, but the server does not show it"
                    f" after {self._waited:.0f} s; points are looked up again before anything is sent again"
                )

    def _without_table(self) -> str:
        return (
            f"run {self.spec.run_id}: its points were sent, its table was not stored"
            f" ({self._table_problem}); it will be sent again"
        )

    def _look_up(self, session: Optional[Session] = None) -> ServerView:
        """Read what the server shows into the ledger; return it, and whether a session arrived completely."""
        view = self.tracker.read(self.spec)
        if (foreign := why_foreign(self.store.ledger, view.home)) is not None:
            raise TrackerError(f"run {self.spec.run_id}: {foreign}", permanent=True, nothing_sent=True)

        def transition(ledger: Ledger) -> Ledger:
            ledger = reconcile(ledger, view, self.clock())
            is_missing = session is None or self._not_shown(ledger, view, session)
            return ledger if is_missing else ledger.with_table_due(False)

        self.store.update(transition)
        return view

    def _not_shown(self, ledger: Ledger, view: ServerView, session: Session) -> list[str]:
        """Return the names of what was sent and is not shown by the server."""
        missing = [entry.name for entry in ledger.due() if entry.step in self.sent]
        is_table_there = not self._table_problem and _shows(view, session)
        return missing if is_table_there else [*missing, _TABLE]

    def _wait(self) -> bool:
        """Wait before the next look-up; return False if time is up, or the program is asked to stop."""
        if self._waited >= self.settle_seconds:
            return False
        seconds = min(next(self._pauses, _PAUSES[-1]), self.settle_seconds - self._waited)
        self._waited += seconds
        return not self.pause(seconds)


def _shows(view: ServerView, session: Session) -> bool:
    """Return whether a run shows the summary and the table of a session."""
    shown = {row.step: (row.revision, row.digest) for row in view.summary_rows or ()}
    return view.summary_rows is not None and shown == {
        point.step: (point.revision, digest(point.metrics))
        for point in session.table
        if point.step in session.row_by_step
    }


def _positioned(points: Sequence[Point], ledger: Ledger, spec: ModelSpec) -> tuple[Point, ...]:
    """Add each point's position in its training, so that curves of different length can be compared.

    Unchanged if the number of epochs is not known.
    """
    if spec.num_train_epochs is None:
        return tuple(points)
    steps = [entry.step for entry in ledger.steps() if entry.processed]
    epochs_a_step = spec.num_train_epochs / max(steps[-1], 1)
    return tuple(
        replace(
            point, checkpoint_index=steps.index(point.step) + 1, epoch_progress=point.step * epochs_a_step
        )
        for point in points
    )


def _status(entry: Entry) -> Optional[str]:
    due = entry.due()
    return due.status if due else None


def _digest(ledger: Ledger, step: int) -> Optional[str]:
    result = ledger.entry(step).result
    return result.digest if result else None


def _indices(ledger: Ledger) -> dict[int, int]:
    """Return the index of each step's row on the server, as far as it is known."""
    return {
        entry.step: entry.delivery.index
        for entry in ledger.steps()
        if entry.delivery and entry.delivery.index is not None
    }


def _last_known_index(ledger: Ledger) -> int:
    return max(_indices(ledger).values(), default=-1)
