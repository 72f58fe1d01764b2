"""Delivers in the background, so that a slow server delays nothing else."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

from eval_sidecar.delivery.delivery import Report, deliver
from eval_sidecar.errors import TrackerError
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.trackers.base import Tracker
from eval_sidecar.types import ModelSpec

log = logging.getLogger(__name__)

#: Seconds after which a delivery that failed is retried; the last one repeats.
_RETRY_SECONDS = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
#: Seconds without anything to deliver after which the tracker is closed: its client takes more memory
#: than all else here. The next delivery opens it again.
_IDLE_SECONDS = 60.0


class DeliveryThread:
    """One thread that delivers a model's results to a tracker as they come.

    Args:
        store: The model's ledger.
        tracker: Where points go.
        spec: The model and its run.
        settle_seconds: How long a server may take to show a row that it has.
        clock: Seconds since the epoch.
        idle_seconds: How long the tracker stays open with nothing to deliver.
        account: Returns what a delivery depends on beside the ledger, such as the key: if it changes,
            whatever is left over is tried again at once.
    """

    def __init__(
        self,
        store: LedgerStore,
        tracker: Tracker,
        spec: ModelSpec,
        settle_seconds: float,
        clock: Callable[[], float] = time.time,
        idle_seconds: float = _IDLE_SECONDS,
        account: Callable[[], Optional[str]] = lambda: None,
    ) -> None:
        self._store = store
        self._tracker = tracker
        self._spec = spec
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._account = account
        self._last_account = account()
        self._has_new_account = False
        self._has_address = False
        self._wanted = threading.Event()
        self._ending = threading.Event()
        self._failures = 0
        self._warn_once = WarnOnce()
        self._refused: set[tuple[int, int, str]] = set()
        self._broken: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    def start(self) -> None:
        """Start; what is due from before is delivered at once."""
        self._wanted.set()
        self._thread.start()

    def notify(self) -> None:
        """Tell the thread that there may be something new to deliver.

        Raises:
            BaseException: what ended the thread, if something did (the ledger cannot be saved).
        """
        if self._broken is not None:
            raise self._broken
        account = self._account()
        if account != self._last_account:
            self._last_account, self._has_new_account = account, True
        # A failed point waits for its retry: only a point that came since is a reason to deliver at once.
        if self._has_new_account or self._pending() - self._refused:
            self._wanted.set()

    def deliver_rest(self, stop: threading.Event) -> None:
        """Deliver what is still due, now and in this thread, unless asked to stop meanwhile."""
        self._end_thread(None)
        if not stop.is_set():
            self._deliver(stop.wait)

    def close(self, timeout: float) -> None:
        """End, and leave nothing running.

        Args:
            timeout: Seconds for a session in progress; after that the tracker is closed all the same, and
                the next start looks up what arrived.
        """
        try:
            self._end_thread(timeout)
        finally:
            self._tracker.close()
            if self._thread.ident is not None:
                self._thread.join(5.0)  # a call that lost its tracker returns at once

    def _end_thread(self, timeout: Optional[float]) -> None:
        self._ending.set()
        self._wanted.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._broken is not None:
            raise self._broken

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._wait_until_wanted()
                self._wanted.clear()
                if self._has_new_account:
                    self._has_new_account = self._has_address = False
                    self._tracker.close()  # it has the account from its start
                if not self._ending.is_set():
                    self._deliver(self._ending.wait)
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, which raises it
            self._broken = error

    def _wait_until_wanted(self) -> None:
        """Wait for something to deliver, or for the time to try again; close the tracker in a long wait."""
        seconds = self._retry_seconds()
        if seconds is not None and seconds <= self._idle_seconds:
            self._wanted.wait(seconds)
        elif not self._wanted.wait(self._idle_seconds):
            self._tracker.close()
            self._wanted.wait(None if seconds is None else seconds - self._idle_seconds)

    def _deliver(self, pause: Callable[[float], bool]) -> None:
        report = self._find_address() or deliver(
            self._store,
            self._tracker,
            self._spec,
            settle_seconds=self._settle_seconds,
            pause=pause,
            clock=self._clock,
        )
        self._failures = self._failures + 1 if report.problem else 0
        self._refused = self._pending() if report.problem else set()
        if report.problem:
            self._warn_once(f"delivery: {report.problem}; will retry until it succeeds")
            return
        self._warn_once.forget()
        if report.sent or report.confirmed or report.already:
            log.info(
                "delivery: %d sent, %d confirmed, %d already there, %d unconfirmed%s",
                report.sent,
                report.confirmed,
                report.already,
                report.unconfirmed,
                f" ({report.where})" if report.where else "",
            )

    def _find_address(self) -> Optional[Report]:
        """Learn once where points will be found, before there is one; return a report if that fails."""
        if self._has_address:
            return None
        try:
            where = self._tracker.address(self._spec)
        except TrackerError as error:
            problem = str(error)
            self._store.update(lambda ledger: ledger.with_problem(problem))
            return Report(problem=problem, where=self._store.ledger.where)
        self._has_address = True
        if where is not None:
            log.info("delivery: points go to %s", where)
        self._store.update(lambda ledger: ledger.with_address(where))
        return None

    def _pending(self) -> set[tuple[int, int, str]]:
        """Return step, revision and digest of every point that has not been sent."""
        return {
            (entry.step, due.revision, entry.result.digest)
            for entry in self._store.ledger.undelivered()
            if (due := entry.due()) and entry.result
        }

    def _retry_seconds(self) -> Optional[float]:
        if not self._failures:
            return None
        return _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS)) - 1]
