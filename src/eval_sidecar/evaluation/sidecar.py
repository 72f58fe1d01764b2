"""One pass over one model: collect what has ended, discover what is new, start what is due."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Callable, Optional

from eval_sidecar.checkpoints.pinning import Need, Pins
from eval_sidecar.checkpoints.readiness import Readiness, need_of
from eval_sidecar.errors import BusyError
from eval_sidecar.evaluation.circuit_breaker import CircuitBreaker
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.evaluation.discovery import find_ready
from eval_sidecar.evaluation.jobs import Jobs, detach_jobs, give_up_elsewhere
from eval_sidecar.evaluation.origins import Origins
from eval_sidecar.evaluation.preemption import Preemption
from eval_sidecar.launchers.base import Launcher
from eval_sidecar.ledger.stamps import CloseLooks
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.types import Checkpoint

log = logging.getLogger(__name__)


class Sidecar:
    """Watches one model dir; every call of `tick` does what can be done now and returns.

    Args:
        config: What to evaluate and how.
        store: The model's ledger, held by this process.
        launcher: Runs the evaluations.
        clock: Seconds since the epoch.
        monotonic: Seconds since some moment, never set back.
    """

    def __init__(
        self,
        config: WatchConfig,
        store: LedgerStore,
        launcher: Launcher,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.store = store
        self.launcher = launcher
        self._ready: dict[int, Checkpoint] = {}
        warn_once = WarnOnce()
        self.pins = Pins(
            config.model_dir,
            config.model,
            elsewhere=store.path.parent,
            limits=config.limits,
            need=self._need,
            source=lambda: self._origins.folder,
        )
        self._readiness = Readiness(
            store,
            self.pins,
            ready_seconds=config.ready_seconds,
            clock=clock,
            monotonic=monotonic,
            warn_once=warn_once,
        )
        self._origins = Origins(
            config, store, is_ready=self._readiness.is_ready, warn_once=warn_once, monotonic=monotonic
        )
        self._preemption = Preemption(config.max_evictions, monotonic)
        self._close_looks = CloseLooks(config.results_root / config.model, monotonic=monotonic)
        self._breaker = CircuitBreaker(config, store)
        self._jobs = Jobs(
            config,
            store,
            launcher,
            self._breaker,
            self.pins,
            self._readiness,
            self._origins,
            self._preemption,
            clock,
            monotonic,
            warn_once,
        )

    @property
    def is_running(self) -> bool:
        """Whether anything is being evaluated that can be waited for here."""
        return self._jobs.are_running

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being evaluated and nothing waits that could be."""
        return not self.is_running and not self._ready

    def seconds_to_wait(self, poll_seconds: float) -> float:
        """Return how long nothing has to be done, as far as is known, unless the loop is woken."""
        pause = self.launcher.pause if self.is_running else poll_seconds
        return min(pause, poll_seconds, self._readiness.seconds_to_wait())

    def tick(self, budget: Optional[int] = None) -> int:
        """Collect, discover, start.

        Args:
            budget: How many evaluations may be started; None means any number.

        Returns:
            How many were started.

        Raises:
            StateError: if the ledger cannot be saved.
            UsageError: if no job will ever be accepted with these flags.
            CheckpointError: if the model dir is a link that now leads to another model.
        """
        self._origins.require_place()
        self._jobs.collect()
        self._breaker.refresh()
        ready = find_ready(
            self.config,
            self.store,
            self.pins,
            self._readiness,
            self._origins,
            self._jobs.accept,
            look_closely=self._close_looks.is_due(),
        )
        self._ready = {step: found for step, found in ready.items() if self._breaker.admits(found)}
        started = self._start(budget)
        self.store.save()
        return started

    def leave(self) -> None:
        """End evaluations that cannot go on without this process; those attempts do not count.

        The next sidecar collects those that go on or have ended on their own.
        """
        for level, text in detach_jobs(self.store, self.launcher, self._jobs.clock):
            log.log(level, "%s", text)
        if self._breaker.reason is None:  # else they are tried again once the cause is fixed
            self._readiness.release_failed()

    def clear_failures(self, steps: Optional[Sequence[int]]) -> None:
        """Give failed checkpoints, these or all, another chance."""
        self._preemption.clear(steps)
        give_up_elsewhere(self.store, self.launcher, steps or ())
        self.store.update(lambda ledger: ledger.cleared(steps))

    def note_busy(self, reason: Optional[str]) -> None:
        """Log and save why no evaluation can be started, or that one can again; once, not in each pass."""
        if reason != self.store.ledger.busy:
            self.store.update(lambda ledger: ledger.busy_with(reason))
            log.log(logging.WARNING if reason else logging.INFO, "%s", reason or "evaluations start again")

    def _need(self, step: int) -> Need:
        entry = self.store.ledger.entry(step)
        return need_of(entry, force=self._origins.is_wanted_again(entry))

    def _start(self, budget: Optional[int]) -> int:
        sign = -1 if self.config.newest_first else 1
        due = filter(self._preemption.is_over, self._ready)
        order = sorted(due, key=lambda step: (self.store.ledger.entry(step).attempts, sign * step))
        started, busy = 0, self._breaker.reason
        if not self.config.model_dir.is_dir():
            busy = f"{self.config.model_dir} does not exist yet; waiting for it"
        for step in order:
            if not self._jobs.has_room or (budget is not None and started >= budget):
                break
            try:
                started += self._jobs.start(self._ready[step])
            except BusyError as error:
                busy = str(error)
                break
            del self._ready[step]
        self.note_busy(busy)
        return started
