"""Runs passes, one after the other, until there is nothing left to do or the program is asked to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.checkpoints.pinning import Pins
from eval_sidecar.errors import CheckpointError, UsageError
from eval_sidecar.evaluation.sidecar import Sidecar
from eval_sidecar.ledger.requests import read_request
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.system.loop import run_passes
from eval_sidecar.types import step_of

#: A file that only grows wakes the loop no more often than this, in seconds.
_SHORTEST_NAP = 0.2


class Waker:
    """Is called with changed files: pins what is new at once, in the calling thread, and wakes the loop.

    Args:
        pins: The pins of the model dir.
        model_dir: Where checkpoints appear.
        retry_request: As for `run_loop`.
        wake: What is set.
        monotonic: Seconds since some moment.
    """

    def __init__(
        self,
        pins: Pins,
        model_dir: Path,
        retry_request: Path,
        wake: threading.Event,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pins = pins
        self._model_dir = model_dir
        self._retry_request = retry_request
        self._wake = wake
        self._monotonic = monotonic
        self._woken_at = float("-inf")
        self._has_changed = False

    def __call__(self, changed: Collection[Path]) -> None:
        """Look at these paths; if there are none, everywhere."""
        steps = {step for path in changed if (step := self._step_of(path)) is not None}
        self._has_changed |= bool(steps)
        is_news = self._retry_request in changed
        try:
            if steps or not changed:
                is_news |= self._pins.look(steps or None)
        except (CheckpointError, OSError):
            is_news = True  # the pass reports what is wrong
        now = self._monotonic()
        if is_news or (self._has_changed and now - self._woken_at >= _SHORTEST_NAP):
            self._has_changed, self._woken_at = False, now
            self._wake.set()

    def _step_of(self, path: Path) -> Optional[int]:
        try:
            parts = path.relative_to(self._model_dir).parts
        except ValueError:
            return None
        return step_of(parts[0]) if parts else None


def run_loop(
    sidecar: Sidecar,
    after_pass: Callable[[], None],
    *,
    once: bool,
    poll_seconds: float,
    retry_request: Path,
    wake: threading.Event,
    stop: threading.Event,
    finish: Optional[threading.Event] = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Run passes of a sidecar; after a stop, end the jobs that cannot go on alone.

    Args:
        sidecar: What a pass is.
        after_pass: Called after each pass: there may be results to deliver.
        once: End when nothing runs and nothing is ready; else only when asked to stop.
        poll_seconds: Longest time between two passes.
        retry_request: File by which `eval-sidecar retry` asks for failures to be cleared.
        wake: As for `run_passes`.
        stop: As for `run_passes`.
        finish: Set to start no more evaluations, and to end when those that run have ended.
        monotonic: Seconds since some moment.

    Raises:
        UsageError: if `once`, and no job will ever be accepted, as the settings are. A watch waits instead:
            new checkpoints must be pinned, and the cluster may be fixed meanwhile.
    """
    finish = finish or threading.Event()
    passes = _Passes(sidecar, once, poll_seconds, retry_request, finish, monotonic)

    def do_pass() -> Optional[float]:
        begun = passes.tick()
        after_pass()
        return passes.seconds_to_next(begun)

    if run_passes(do_pass, wake=wake, stop=stop) or finish.is_set():
        sidecar.leave()


class _Passes:
    """Passes of a sidecar, in cycles that start no more evaluations than they may."""

    def __init__(
        self,
        sidecar: Sidecar,
        once: bool,
        poll_seconds: float,
        retry_request: Path,
        finish: threading.Event,
        monotonic: Callable[[], float],
    ) -> None:
        self._sidecar = sidecar
        self._once = once
        self._poll_seconds = poll_seconds
        self._retry_request = retry_request
        self._finish = finish
        self._monotonic = monotonic
        self._limit = sidecar.config.max_pending
        self._cycle_began, self._started = monotonic(), 0
        self._warn_once = WarnOnce()

    def tick(self) -> int:
        """Do one pass; return how many evaluations it started."""
        if (steps := read_request(self._retry_request)) is not None:
            self._sidecar.clear_failures(steps or None)
        if not self._once and self._monotonic() - self._cycle_began >= self._poll_seconds:
            self._cycle_began, self._started = self._monotonic(), 0
        begun = 0
        try:
            begun = self._sidecar.tick(self._budget())
            self._warn_once.forget()
        except UsageError as error:
            if self._once:
                raise
            self._sidecar.note_busy(f"{error}; until then new checkpoints are kept; will retry")
        except (CheckpointError, OSError) as error:
            if self._once:
                raise
            # One unreadable file is not a reason to end running evaluations.
            self._warn_once(f"{error}; will retry")
        self._started += begun
        return begun

    def _budget(self) -> Optional[int]:
        if self._finish.is_set():
            return 0
        return self._limit - self._started if self._limit else None

    def seconds_to_next(self, begun: int) -> Optional[float]:
        """Return how long to wait for the next pass; None if there is nothing left to do."""
        is_idle = self._sidecar.is_idle and not begun
        is_spent = bool(self._limit) and self._started >= self._limit and not self._sidecar.is_running
        if self._once and (is_idle or is_spent):
            return None
        if self._finish.is_set() and not self._sidecar.is_running:
            return None
        return self._sidecar.seconds_to_wait(self._poll_seconds)
