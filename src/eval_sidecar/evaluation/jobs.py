"""Evaluations of one model: started, followed, judged once they are over, and detached at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.checkpoints.listing import remove_links
from eval_sidecar.checkpoints.pinning import Pins
from eval_sidecar.checkpoints.readiness import Readiness
from eval_sidecar.errors import BusyError, LaunchError, MissingResultError, ResultError, UsageError
from eval_sidecar.evaluation import attempt
from eval_sidecar.evaluation.circuit_breaker import CircuitBreaker
from eval_sidecar.evaluation.config import WatchConfig, job_of
from eval_sidecar.evaluation.origins import Origins
from eval_sidecar.evaluation.preemption import Preemption
from eval_sidecar.launchers.base import JobState, Launcher
from eval_sidecar.ledger.ledger import Entry, Failure, Ledger, Running
from eval_sidecar.ledger.provenance import remove_begun
from eval_sidecar.ledger.results import headline, left_out_of
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.paths import EvaluationPaths
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.types import Checkpoint, Handle, JobPhase, Origin, Result, now_text

log = logging.getLogger(__name__)


@dataclass
class Jobs:
    """Starts the evaluations of one model and brings what became of them into the ledger.

    Attributes:
        config: What to evaluate and how.
        store: The model's ledger.
        launcher: Runs the evaluations.
        breaker: Hears of each evaluation that has failed or succeeded.
        pins: Keep checkpoints alive.
        readiness: Says whether a checkpoint may be evaluated, and whether it was rewritten meanwhile.
        origins: Says which weights and settings a result is of.
        preemption: Says when an evicted evaluation starts again.
        clock: Seconds since the epoch.
        monotonic: Seconds since some moment, never set back.
        warn_once: Logs what a user should read once.
    """

    config: WatchConfig
    store: LedgerStore
    launcher: Launcher
    breaker: CircuitBreaker
    pins: Pins
    readiness: Readiness
    origins: Origins
    preemption: Preemption
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    warn_once: WarnOnce
    _running_since: dict[int, float] = field(default_factory=dict, init=False)
    _phases: dict[int, JobPhase] = field(default_factory=dict, init=False)

    @property
    def are_running(self) -> bool:
        """Whether anything is being evaluated that can be waited for here."""
        return any(
            self._phases.get(entry.step) != JobPhase.ELSEWHERE for entry, _ in _running(self.store.ledger)
        )

    @property
    def has_room(self) -> bool:
        """Whether the launcher takes one more."""
        return self.launcher.free_slots(self._handles()) > 0

    def _handles(self) -> list[Handle]:
        return [running.handle for _, running in _running(self.store.ledger)]

    # -- start --------------------------------------------------------------------------------------

    def start(self, checkpoint: Checkpoint) -> bool:
        """Start an evaluation; return False if the checkpoint turns out not to be ready any more.

        Raises:
            BusyError: if no job is accepted at the moment.
            UsageError: if no such job will ever be accepted.
            StateError: if the ledger cannot be saved.
        """
        step, store = checkpoint.step, self.store
        path = self.config.metrics_path(step)
        with self.pins.still:
            checked_out = self.readiness.check_out(checkpoint)
            if checked_out is None:
                return False
            job = job_of(self.config, checked_out)
            self.breaker.note_start(checked_out)
            handles = self._handles()
            running = Running(
                handle=self.launcher.reserve(job),
                started_at=self.clock(),
                log=str(job.log),
                path=str(checked_out.path),
                fingerprint=self.readiness.fingerprint(checked_out),
                before=attempt.stamp_before(path),
                metrics=str(path),
                origin=self.origins.origin_now(checked_out),
                log_size=attempt.log_size(job.log),
            )
            # On disk before the job exists: whatever happens, the job is found again.
            store.update(lambda ledger: ledger.started(step, running))
            self.origins.begin(step, running.origin, path)
        try:
            handle = self.launcher.submit(job, handles)
        except (BusyError, UsageError):
            store.update(lambda ledger: ledger.interrupted(step))
            raise
        except LaunchError as error:
            entry = store.ledger.entry(step)
            self._fail(entry, str(error).replace(f"{entry.name}: ", "", 1), running, is_own=True)
            remove_begun(path)
            return True
        self._phases.pop(step, None)
        self._running_since[step] = self.monotonic()
        store.update(lambda ledger: ledger.submitted(step, handle))
        log.info("%s: evaluation started, log: %s", checkpoint.name, job.log)
        return True

    # -- follow -------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Look at every evaluation under way, and settle those that are over."""
        for entry, running in _running(self.store.ledger):
            state = self.launcher.poll(running.handle)
            self._phases[entry.step] = state.phase
            try:
                if state.phase in (JobPhase.QUEUED, JobPhase.RUNNING, JobPhase.ELSEWHERE):
                    self._follow(entry, running, state)
                else:
                    self._end(entry, running, state)
            except LaunchError as error:
                self.warn_once(f"{entry.name}: {error}; will retry")

    def _follow(self, entry: Entry, running: Running, state: JobState) -> None:
        """Record how far a running evaluation is, and end it if it takes too long."""
        began = running.started_at if state.began is None else state.began
        if state.reason != running.state:
            log.info("%s: %s", entry.name, state.reason)
        if (began, state.reason) != (running.started_at, running.state):
            running = self._update_running(
                entry, lambda ledger: ledger.followed(entry.step, started_at=began, state=state.reason)
            )
        if state.phase != JobPhase.RUNNING:
            self._running_since.pop(entry.step, None)  # waiting for a machine does not count
        elif running.ending is None and self._is_overdue(entry, running, state):
            limit = self.config.time_limit
            why = f"the evaluation took longer than {limit:.0f} s (--eval-timeout-seconds)"
            running = self._update_running(entry, lambda ledger: ledger.ending(entry.step, why))
        if running.ending is not None and self.launcher.cancel(running.handle):
            self._settle(entry, running, state)

    def _end(self, entry: Entry, running: Running, state: JobState) -> None:
        """Settle an evaluation that is over, once none of its processes is left."""
        if state.phase == JobPhase.EVICTED and running.ending is None:
            why = state.reason or ""
            running = self._update_running(entry, lambda ledger: ledger.ending(entry.step, why, evicted=True))
        if self.launcher.cancel(running.handle):
            self._settle(entry, running, state)

    def _update_running(self, entry: Entry, transition: Callable[[Ledger], Ledger]) -> Running:
        running = self.store.update(transition).entry(entry.step).running
        assert running is not None
        return running

    def _is_overdue(self, entry: Entry, running: Running, state: JobState) -> bool:
        # A job of an earlier sidecar is given the time that it has run; a clock that was set back, none.
        began = self._running_since.setdefault(
            entry.step, self.monotonic() - max(0.0, self.clock() - running.started_at)
        )
        used = self.monotonic() - began if state.used is None else state.used
        return bool(self.config.time_limit) and used > self.config.time_limit

    # -- judge --------------------------------------------------------------------------------------

    def _settle(self, entry: Entry, running: Running, state: JobState) -> None:
        """Record the outcome of an evaluation that is over, however it ended."""
        ours = self._running_since.pop(entry.step, None) is not None
        # Before its numbers count: the weights may have been replaced.
        present = Checkpoint(entry.step, self.origins.folder / entry.name)
        entry = self.origins.look(entry.step, present if present.path.is_dir() else None)
        remove_links(EvaluationPaths(self.config.log_dir).links, self.config.model, entry.name)
        if state.exit_code is None:
            attempt.write_end(running, running.ending or state.reason or state.phase, self.clock())
        if running.ending is not None and state.exit_code != 0:
            if running.evicted:
                self._judge_evicted(entry, running, running.ending)
            else:
                self._fail(entry, running.ending, running, is_own=True)
        elif state.phase == JobPhase.ENDED:
            self._judge_ended(entry, running, state)
        elif state.phase == JobPhase.CANCELLED:
            self._fail(entry, f"{state.reason}, cancelled by a user", running, final=True)
        elif ours:
            self._fail(entry, f"the job disappeared: {state.reason}", running)
        else:
            log.warning("%s: job lost (%s), will start it again", entry.name, state.reason)
            attempt.interrupt(self.store, entry)
        remove_begun(self.config.metrics_path(entry.step))

    def _judge_evicted(self, entry: Entry, running: Running, why: str) -> None:
        times, most = len(entry.evictions) + 1, self.preemption.most
        seconds = self.preemption.pause(entry.step, times)
        if seconds is None:
            self._fail(entry, f"{why}, after {most} earlier evictions", running)
            return
        attempt.set_aside_unfinished(running, "interrupted")
        reason = f"{now_text()} {why}"
        self.store.update(lambda ledger: ledger.evicted(entry.step, reason))
        when = f" in {seconds:.0f} s" if seconds else ""
        log.warning("%s: %s; will start it again%s (%d of %d)", entry.name, why, when, times, most)

    def _judge_ended(self, entry: Entry, running: Running, state: JobState) -> None:
        if state.exit_code != 0:
            self._fail(entry, attempt.why_ended(state), running, is_own=True)
        elif self.readiness.was_rewritten(entry.step, running):
            self._fail(entry, "the checkpoint was rewritten while it was evaluated", running)
        else:
            try:
                result = attempt.read_new_result(running, self.config.metrics_path(entry.step))
            except ResultError as error:
                is_missing = isinstance(error, MissingResultError)  # so it would be the next time
                self._fail(entry, str(error), running, final=is_missing, is_own=True)
            else:
                self.origins.write_down(entry, running.origin, Path(result.path))
                self.breaker.note_success(entry.step)
                self.accept(entry, result, running.origin, self.clock() - running.started_at)

    def accept(self, entry: Entry, result: Result, origin: Origin, seconds: Optional[float] = None) -> None:
        """Take a result into the ledger.

        Args:
            entry: What the ledger knows of the checkpoint.
            result: Its numbers.
            origin: What they were made of.
            seconds: How long the evaluation took; None if the result was found on disk.
        """
        number = 0 if seconds is None else self.store.ledger.forced.round
        self.store.update(lambda ledger: ledger.evaluated(entry.step, result, origin, number))
        shown = ", ".join(f"{name} {value:g}" for name, value in headline(result.metrics).items())
        how = f"evaluated in {seconds:.0f} s" if seconds is not None else f"taken from {result.path}"
        log.info("%s: %s (%s)", entry.name, shown, how)
        if left_out := left_out_of(self.config.model, entry.name, result):
            self.warn_once(left_out)
        if self.store.ledger.entry(entry.step).processed:  # otherwise the pin has other weights, and is kept
            self.readiness.unpin(entry.step)

    def _fail(
        self, entry: Entry, error: str, running: Running, *, final: bool = False, is_own: bool = False
    ) -> None:
        """Bring a failure into the ledger.

        Args:
            entry: What the ledger knows of the checkpoint.
            error: Why.
            running: The evaluation.
            final: Whether it is not tried again.
            is_own: Whether the evaluation itself failed, which may be the same for each checkpoint.
        """
        attempt.set_aside_unfinished(running, "failed")
        said = attempt.last_output(running)
        text = f"{error}: {said}" if said else error
        if is_own:
            self.breaker.note_failure(entry.step, running, text)
        if running.origin.identity not in (None, self.store.ledger.entry(entry.step).known_identity):
            failure = Failure(now_text(), f"{text} (with earlier weights)", running.log)
            log.error("%s: %s; will evaluate the weights that are there now", entry.name, failure.error)
            self.store.update(lambda ledger: ledger.failed_with_other_weights(entry.step, failure))
            return
        number, most = entry.attempts + 1, self.config.max_attempts
        final = final or number >= most
        failure = Failure(now_text(), text, running.log, final)
        self.store.update(lambda ledger: ledger.failed(entry.step, failure))
        then = "it stays failed until `eval-sidecar retry`" if final else "will retry"
        then = "evaluation is paused" if self.breaker.reason else then
        log.error("%s: %s; attempt %d of %d, %s; log: %s", entry.name, text, number, most, then, running.log)


# -- detach ------------------------------------------------------------------------------------------


def detach_jobs(
    store: LedgerStore, launcher: Launcher, clock: Callable[[], float] = time.time
) -> Iterator[tuple[int, str]]:
    """End evaluations that cannot go on without a sidecar; their checkpoints are as if never tried.

    The next sidecar collects those that go on or have ended on their own.

    Args:
        store: The model's ledger.
        launcher: Has the evaluations.
        clock: Seconds since the epoch.

    Yields:
        For each what was done, as a level of `logging` and a sentence.

    Raises:
        StateError: if the ledger cannot be saved.
    """
    for entry, running in _running(store.ledger):
        state = launcher.poll(running.handle)
        if state.phase == JobPhase.ENDED:
            continue
        try:
            goes_on = launcher.detach(running.handle)
        except LaunchError as error:
            yield logging.ERROR, f"{entry.name}: {error}; the next start will retry"
            continue
        if goes_on:
            yield logging.INFO, f"{entry.name}: left to the next start: {state.reason}"
            continue
        attempt.write_end(running, "stopped together with the sidecar", clock())
        attempt.interrupt(store, entry)
        if running.metrics is not None:
            remove_begun(Path(running.metrics))
        yield logging.INFO, f"{entry.name}: evaluation stopped, the checkpoint stays pending"


def is_elsewhere(entry: Entry, launcher: Launcher) -> bool:
    """Return whether a step's evaluation is on a machine that cannot be asked from here."""
    return entry.running is not None and launcher.poll(entry.running.handle).phase == JobPhase.ELSEWHERE


def give_up_elsewhere(store: LedgerStore, launcher: Launcher, steps: Collection[int]) -> None:
    """Forget evaluations of these steps that are on machines that cannot be asked from here."""
    for entry in store.ledger.steps():
        if entry.step in steps and is_elsewhere(entry, launcher):
            attempt.interrupt(store, entry)


def _running(ledger: Ledger) -> list[tuple[Entry, Running]]:
    return [(entry, entry.running) for entry in ledger.steps() if entry.running is not None]
