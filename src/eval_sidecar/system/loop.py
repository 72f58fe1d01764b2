"""Runs passes, one after the other, until one was the last or the program is asked to stop."""

from __future__ import annotations

import threading
from typing import Callable, Optional


def run_passes(
    do_pass: Callable[[], Optional[float]], *, wake: threading.Event, stop: threading.Event
) -> bool:
    """Run passes.

    Args:
        do_pass: Does what can be done now, and returns the longest time until the next pass, in seconds;
            None if it was the last.
        wake: Set when there is something new, or when `stop` was set.
        stop: Set to end.

    Returns:
        Whether a stop ended it, not the last pass.
    """
    while True:
        wake.clear()
        if stop.is_set():  # only after `clear`, which may have erased the wake-up of an earlier stop
            return True
        seconds = do_pass()
        if seconds is None:
            return False
        wake.wait(seconds)
