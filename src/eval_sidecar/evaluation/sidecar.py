"""One pass over one model: collect what has ended, discover what is new, start what is due."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.checkpoints.listing import list_checkpoints, remove_links
from eval_sidecar.checkpoints.pinning import Need, Pins
from eval_sidecar.checkpoints.readiness import Readiness, need_of
from eval_sidecar.errors import BusyError, LaunchError, ResultError, UsageError
from eval_sidecar.evaluation import attempt
from eval_sidecar.evaluation.config import WatchConfig, job_of
from eval_sidecar.evaluation.origins import Origins
from eval_sidecar.launchers.base import (
    CANCELLED,
    ELSEWHERE,
    ENDED,
    EVICTED,
    QUEUED,
    RUNNING,
    JobState,
    Launcher,
)
from eval_sidecar.ledger.ledger import Entry, Failure, Running
from eval_sidecar.ledger.provenance import remove_begun
from eval_sidecar.ledger.results import headline, left_out_of
from eval_sidecar.ledger.stamps import CloseLooks
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.paths import EvaluationPaths, ResultPaths
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.system.text import now_text
from eval_sidecar.types import Checkpoint, Handle, Origin, Result

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
        self._clock = clock
        self._monotonic = monotonic
        self._ready: dict[int, Checkpoint] = {}
        self._running_since: dict[int, float] = {}
        self._phases: dict[int, str] = {}
        self._pauses = attempt.Pauses(monotonic)
        self._warn_once = WarnOnce()
        self._close_looks = CloseLooks(config.results_root / config.model, monotonic=monotonic)
        self.pins = Pins(
            *(config.model_dir, config.model),
            elsewhere=store.path.parent,
            limits=config.limits,
            need=self._need,
            source=lambda: self._origins.folder,
        )
        self._readiness = Readiness(
            *(store, self.pins),
            ready_seconds=config.ready_seconds,
            clock=clock,
            monotonic=monotonic,
            warn_once=self._warn_once,
        )
        self._origins = Origins(
            *(config, store),
            is_ready=self._readiness.is_ready,
            warn_once=self._warn_once,
            monotonic=monotonic,
        )

    @property
    def is_running(self) -> bool:
        """Whether anything is being evaluated that can be waited for here."""
        return any(self._phases.get(entry.step) != ELSEWHERE for entry, _ in self._running())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being evaluated and nothing waits that could be."""
        return not self.is_running and not self._ready

    def seconds_to_wait(self, poll_seconds: float) -> float:
        """How long nothing has to be done, as far as is known, if nobody wakes the loop."""
        pause = self.launcher.pause if self.is_running else poll_seconds
        return min(pause, poll_seconds, self._readiness.seconds_to_wait())

    def tick(self, budget: Optional[int] = None) -> int:
        """Collect, discover, start.

        Args:
            budget: How many evaluations may be started; None means any number.

        Returns:
            How many were started.

        Raises:
            StateError: where the ledger cannot be saved.
            UsageError: where no job will ever be taken, as the flags are.
            CheckpointError: where the model dir is a link that leads to another model now.
        """
        self._origins.require_place()
        self._collect()
        self._discover()
        return self._start(budget)

    def leave(self) -> None:
        """End what cannot go on without this process; the checkpoints of those are as if never tried.

        What has ended by itself, and what goes on, is the next sidecar's to collect.
        """
        for entry, running in self._running():
            state = self.launcher.poll(running.handle)
            if state.phase == ENDED:
                continue
            try:
                if self.launcher.leave(running.handle):
                    log.info("%s: %s; it goes on, and the next start collects it", entry.name, state.reason)
                else:
                    log.info("%s: evaluation ended, the checkpoint stays pending", entry.name)
                    attempt.interrupt(self.store, entry)
                    remove_begun(self._metrics_path(entry.step))
            except LaunchError as error:
                log.error("%s: %s; the next start looks again", entry.name, error)
        self._readiness.release_failed()

    def clear_failures(self, steps: Optional[Sequence[int]]) -> None:
        """Give failed checkpoints, these or all, another chance."""
        self._pauses.end(steps)
        attempt.give_up_elsewhere(self.store, self.launcher, steps or ())
        self.store.update(lambda ledger: ledger.cleared(steps))

    def note_busy(self, reason: Optional[str]) -> None:
        """Say and keep why no evaluation can be started, or that it can again; once, not at each pass."""
        if reason != self.store.ledger.busy:
            self.store.update(lambda ledger: replace(ledger, busy=reason))
            log.log(logging.WARNING if reason else logging.INFO, "%s", reason or "evaluations start again")

    def _need(self, step: int) -> Need:
        return need_of(
            self.store.ledger.entry(step), force=self._is_wanted_again(self.store.ledger.entry(step))
        )

    def _running(self) -> list[tuple[Entry, Running]]:
        return [(entry, entry.running) for entry in self.store.ledger.steps() if entry.running is not None]

    # -- collect ------------------------------------------------------------------------------------

    def _collect(self) -> None:
        for entry, running in self._running():
            state = self.launcher.poll(running.handle)
            self._phases[entry.step] = state.phase
            try:
                if state.phase in (QUEUED, RUNNING, ELSEWHERE):
                    self._follow(entry, running, state)
                else:
                    self._end(entry, running, state)
            except LaunchError as error:
                self._warn_once(f"{entry.name}: {error}; the next pass tries again")

    def _follow(self, entry: Entry, running: Running, state: JobState) -> None:
        """Note how far an evaluation is that is not over, and end it where it takes too long."""
        began = running.started_at if state.began is None else state.began
        if state.reason != running.state:
            log.info("%s: %s", entry.name, state.reason)
        if (began, state.reason) != (running.started_at, running.state):
            running = replace(running, started_at=began, state=state.reason)
            self.store.update(lambda ledger: ledger.started(entry.step, running))
        if state.phase != RUNNING:
            self._running_since.pop(entry.step, None)  # waiting for a machine takes no time of its own
        elif running.ending is None and self._is_overdue(entry, running, state):
            why = f"the evaluation took longer than {self.config.time_limit:.0f} s (--eval-timeout-seconds)"
            running = self._note_ending(entry, running, why)
        if running.ending is not None and self.launcher.cancel(running.handle):
            self._settle(entry, running, state)

    def _end(self, entry: Entry, running: Running, state: JobState) -> None:
        """Settle an evaluation that is over once nothing that it may have left is running."""
        if state.phase == EVICTED and running.ending is None:
            running = self._note_ending(entry, running, state.reason or "", evicted=True)
        if self.launcher.cancel(running.handle):
            self._settle(entry, running, state)

    def _note_ending(self, entry: Entry, running: Running, why: str, *, evicted: bool = False) -> Running:
        running = replace(running, ending=why, evicted=evicted)
        self.store.update(lambda ledger: ledger.started(entry.step, running))
        return running

    def _settle(self, entry: Entry, running: Running, state: JobState) -> None:
        """Draw the consequences of an evaluation that is over, however it ended."""
        ours = self._running_since.pop(entry.step, None) is not None
        # Before its numbers count: what was evaluated may not be what is there now.
        entry = self._origins.look(entry.step, self._present(entry.step))
        remove_links(EvaluationPaths(self.config.log_dir).links, self.config.model, entry.name)
        if running.ending is not None and state.exit_code != 0:
            if running.evicted:
                self._judge_evicted(entry, running, running.ending)
            else:
                self._fail(entry, running.ending, running)
        elif state.phase == ENDED:
            self._judge_ended(entry, running, state)
        elif state.phase == CANCELLED:
            self._fail(entry, f"{state.reason}, by somebody's hand", running, final=True)
        elif ours:
            self._fail(entry, f"the evaluation vanished: {state.reason}", running)
        else:
            log.warning("%s: evaluation lost (%s), it is started again", entry.name, state.reason)
            attempt.interrupt(self.store, entry)
        remove_begun(self._metrics_path(entry.step))

    def _is_overdue(self, entry: Entry, running: Running, state: JobState) -> bool:
        # A job of an earlier sidecar is given the time that it has run; a clock that was set back, none.
        began = self._running_since.setdefault(
            entry.step, self._monotonic() - max(0.0, self._clock() - running.started_at)
        )
        used = self._monotonic() - began if state.used is None else state.used
        return bool(self.config.time_limit) and used > self.config.time_limit

    def _judge_evicted(self, entry: Entry, running: Running, why: str) -> None:
        times, most = len(entry.evictions) + 1, self.config.max_evictions
        if times > most:
            self._fail(entry, f"{why}, after the machine took it away {most} times", running)
            return
        attempt.set_aside_unfinished(running, "interrupted")
        reason = f"{now_text()} {why}"
        self.store.update(lambda ledger: ledger.evicted(entry.step, reason))
        told = (entry.name, why, self._pauses.begin(entry.step, times), times, most)
        log.warning("%s: %s; it is started %s (%d of %d)", *told)

    def _judge_ended(self, entry: Entry, running: Running, state: JobState) -> None:
        if state.exit_code != 0:
            self._fail(entry, attempt.why_ended(state), running)
        elif self._readiness.was_rewritten(entry.step, running):
            self._fail(entry, "the checkpoint was rewritten while it was evaluated", running)
        else:
            try:
                result = attempt.read_new_result(running, self._metrics_path(entry.step))
            except ResultError as error:
                self._fail(entry, str(error), running)
            else:
                self._origins.write_down(entry, running.origin, Path(result.path))
                self._accept(entry, result, running.origin, self._clock() - running.started_at)

    def _accept(self, entry: Entry, result: Result, origin: Origin, seconds: Optional[float] = None) -> None:
        number = 0 if seconds is None else self.store.ledger.forced.round
        self.store.update(lambda ledger: ledger.evaluated(entry.step, result, origin, number))
        shown = ", ".join(f"{name} {value:g}" for name, value in headline(result.metrics).items())
        how = f"evaluated in {seconds:.0f} s" if seconds is not None else f"taken from {result.path}"
        log.info("%s: %s (%s)", entry.name, shown, how)
        if said := left_out_of(self.config.model, entry.name, result):
            self._warn_once(said)
        if self.store.ledger.entry(entry.step).processed:  # else other weights are there now, and kept
            self._readiness.unpin(entry.step)

    def _fail(self, entry: Entry, error: str, running: Running, *, final: bool = False) -> None:
        attempt.set_aside_unfinished(running, "failed")
        said = attempt.last_words(running)
        text = f"{error}: {said}" if said else error
        if running.origin.identity not in (None, self.store.ledger.entry(entry.step).known_identity):
            failure = Failure(now_text(), f"{text} (with the weights that were there before)", running.log)
            log.error("%s: %s; those that are there now are evaluated", entry.name, failure.error)
            self.store.update(lambda ledger: ledger.with_entry(entry.step, running=None, failure=failure))
            return
        number = entry.attempts + 1
        final = final or number >= self.config.max_attempts
        failure = Failure(now_text(), text, running.log, final)
        self.store.update(lambda ledger: ledger.failed(entry.step, failure))
        then = "it stays failed until `eval-sidecar retry`" if final else "it is tried again"
        told = (entry.name, text, number, self.config.max_attempts, then, running.log)
        log.error("%s: %s; attempt %d of %d, %s; log: %s", *told)

    # -- discover -----------------------------------------------------------------------------------

    def _discover(self) -> None:
        """Bring ledger and pins up to date with the folders; afterwards `_ready` says what may start."""
        config = self.config
        present = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(self._origins.folder)}
        self._origins.begin_round(lambda: {*present, *self.pins.held()})
        for step, checkpoint in present.items():
            entry = self.store.ledger.entry(step)
            if entry.running is None and (entry.result or entry.listed or entry.failure):
                self._origins.look(step, checkpoint)
        self.pins.look()  # only now: what was saved again with other weights is pinned like new
        results, held = config.results_root / config.model, self.pins.held()
        reported = {checkpoint.step for checkpoint in list_checkpoints(results)}
        look_closely = self._close_looks.is_due()
        self._readiness.begin_pass(present.values())
        ready = {}
        for step in sorted({*present, *held, *reported, *self.store.ledger.entries}):
            entry = self.store.ledger.entry(step)
            if entry.running is not None:
                continue
            is_wanted_again = self._is_wanted_again(entry) and (step in present or step in held)
            if entry.processed and not (look_closely or is_wanted_again or entry.failure or step in held):
                continue
            if not is_wanted_again and self._origins.take(
                *(entry, self._metrics_path(step), present.get(step), held.get(step)), self._accept
            ):
                if step in held:
                    self._readiness.unpin(step)
            elif is_wanted_again or not entry.has_failed:
                checked = self._readiness.prepare(entry, present.get(step), held.get(step))
                if checked is not None:
                    ready[step] = checked
        self._origins.keep_noted()
        self._ready = ready

    def _is_wanted_again(self, entry: Entry) -> bool:
        """Whether --force-eval asks for a checkpoint that this request has not evaluated yet."""
        return self.config.force and entry.round < self.store.ledger.forced.round

    # -- start --------------------------------------------------------------------------------------

    def _start(self, budget: Optional[int]) -> int:
        sign = -1 if self.config.newest_first else 1
        due = filter(self._pauses.is_over, self._ready)
        order = sorted(due, key=lambda step: (self.store.ledger.entry(step).attempts, sign * step))
        started, busy = 0, None
        if not self.config.model_dir.is_dir():
            busy = f"{self.config.model_dir} is not there yet; waiting for it"
        for step in order:
            handles = [running.handle for _, running in self._running()]
            if self.launcher.free_slots(handles) == 0 or (budget is not None and started >= budget):
                break
            try:
                self._start_one(self.store.ledger.entry(step), self._ready[step], handles)
            except BusyError as error:
                busy = str(error)
                break
            started += step in self._ready
            self._ready.pop(step, None)
        self.note_busy(busy)
        return started

    def _start_one(self, entry: Entry, checkpoint: Checkpoint, handles: list[Handle]) -> None:
        config, path = self.config, self._metrics_path(entry.step)
        with self.pins.still:
            checked_out = self._readiness.check_out(checkpoint)
            if checked_out is None:
                del self._ready[entry.step]
                return
            job = job_of(config, checked_out)
            running = Running(
                handle=self.launcher.announce(job),
                started_at=self._clock(),
                log=str(job.log),
                path=str(checked_out.path),
                fingerprint=self._readiness.fingerprint(checked_out),
                before=attempt.stamp_before(path),
                metrics=str(path),
                origin=self._origins.origin_now(checked_out),
                log_size=attempt.log_size(job.log),
            )
            # It is on disk before the job exists: however this ends, the job is found again.
            self.store.update(lambda ledger: ledger.started(entry.step, running))
            self._origins.begin(entry.step, running.origin, path)
        try:
            handle = self.launcher.submit(job, handles)
        except (BusyError, UsageError):
            self.store.update(lambda ledger: ledger.interrupted(entry.step))
            raise
        except LaunchError as error:
            self._fail(entry, str(error).replace(f"{entry.name}: ", "", 1), running)
            remove_begun(path)
            return
        self._phases.pop(entry.step, None)
        self._running_since[entry.step] = self._monotonic()
        self.store.update(lambda ledger: ledger.started(entry.step, replace(running, handle=handle)))
        log.info("%s: evaluation started, log: %s", entry.name, job.log)

    def _metrics_path(self, step: int) -> Path:
        return ResultPaths(self.config.results_root).metrics(self.config.model, step)

    def _present(self, step: int) -> Optional[Checkpoint]:
        """The trainer's folder of a step, if it is there."""
        checkpoint = Checkpoint(step, self._origins.folder / f"checkpoint-{step}")
        return checkpoint if checkpoint.path.is_dir() else None
