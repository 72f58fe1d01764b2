"""Passes, one after the other, until one was the last or the program is asked to stop."""

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
        wake: Set by whoever knows of something new, or has set `stop`.
        stop: Set to end.

    Returns:
        Whether a stop ended it, not the last pass.
    """
    while True:
        wake.clear()
        if stop.is_set():  # only now: a stop that came before would have woken nobody
            return True
        seconds = do_pass()
        if seconds is None:
            return False
        wake.wait(seconds)
