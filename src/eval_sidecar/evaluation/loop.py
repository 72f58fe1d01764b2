"""Passes, one after the other, until there is nothing left to do or the program is asked to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.checkpoints.pinning import Pins
from eval_sidecar.errors import CheckpointError, UsageError
from eval_sidecar.evaluation.sidecar import Sidecar
from eval_sidecar.ledger.requests import read_request
from eval_sidecar.types import step_of

log = logging.getLogger(__name__)


#: A file that only grows wakes the loop no more often than this, in seconds.
_SHORTEST_NAP = 0.2


class Waker:
    """Hears of changed files: pins what is new at once, in the thread that hears of it, and wakes the loop.

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
        """Take note of these paths; of none: look everywhere."""
        steps = {step for path in changed if (step := self._step_of(path)) is not None}
        self._has_changed |= bool(steps)
        is_news = self._retry_request in changed
        try:
            if steps or not changed:
                is_news |= self._pins.look(steps or None)
        except (CheckpointError, OSError):
            is_news = True  # the pass says what is wrong
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
    notify: Callable[[], None],
    *,
    once: bool,
    poll_seconds: float,
    retry_request: Path,
    wake: threading.Event,
    stop: threading.Event,
    on_pass: Callable[[], None] = lambda: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Run passes.

    Args:
        sidecar: What a pass is.
        notify: Called after each pass: results may be there to deliver.
        once: End when nothing runs and nothing is ready; else only when asked to stop.
        poll_seconds: Longest time between two passes.
        retry_request: File by which `eval-sidecar retry` asks for failures to be cleared.
        wake: Set by whoever knows of something new.
        stop: Set to end; evaluations that cannot go on alone are then ended.
        on_pass: Called after each pass.
        monotonic: Seconds since some moment.

    Raises:
        UsageError: where `once`, and no job will ever be taken, as the flags are. Else that is waited out:
            new checkpoints must be pinned, and it may be the cluster that is mended.
    """
    limit = sidecar.config.max_pending
    cycle_began, started = monotonic(), 0
    known_error = ""
    while True:
        wake.clear()
        if stop.is_set():  # only now: a stop that came before would have woken nobody
            break
        if (steps := read_request(retry_request)) is not None:
            sidecar.clear_failures(steps or None)
        if not once and monotonic() - cycle_began >= poll_seconds:
            cycle_began, started = monotonic(), 0
        begun = 0
        try:
            begun = sidecar.tick(limit - started if limit else None)
        except UsageError as error:
            if once:
                raise
            sidecar.note_busy(f"{error}; until then new checkpoints are kept, and it is tried again")
        except (CheckpointError, OSError) as error:
            if once:
                raise
            # One file that cannot be read is no reason to end what runs: look again at the next pass.
            if str(error) != known_error:
                log.error("%s; the next pass looks again", error)
            known_error = str(error)
        started += begun
        notify()
        on_pass()
        exhausted = bool(limit) and started >= limit
        if once and ((sidecar.is_idle and not begun) or (exhausted and not sidecar.is_running)):
            return
        wake.wait(sidecar.seconds_to_wait(poll_seconds))
    sidecar.leave()
