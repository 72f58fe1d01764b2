"""Restarts evicted evaluations, with a longer pause each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

#: Seconds that a checkpoint waits after its second eviction, and at most.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0


class Preemption:
    """How often evicted checkpoints are started again, and how long each waits: twice as long each time.

    One eviction may happen to any job. But a node that ends every job at once would use up the evictions of
    every checkpoint in minutes.

    Args:
        most: Evictions after which the next one counts as a failure.
        monotonic: Seconds since some moment, never set back.
    """

    def __init__(self, most: int, monotonic: Callable[[], float]) -> None:
        self.most = most
        self._monotonic = monotonic
        self._ends: dict[int, float] = {}

    def pause(self, step: int, times: int) -> Optional[float]:
        """Begin the pause of a step that was evicted `times` times.

        Returns:
            How long it waits, in seconds; None if it was evicted too often, and fails.
        """
        if times > self.most:
            return None
        seconds: float = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2 ** (times - 2)) if times > 1 else 0.0
        self._ends[step] = self._monotonic() + seconds
        return seconds

    def is_over(self, step: int) -> bool:
        """Return whether a step need not wait (any more)."""
        return self._monotonic() >= self._ends.get(step, 0.0)

    def clear(self, steps: Optional[Sequence[int]]) -> None:
        """End the pauses of these steps, or of all."""
        for step in list(self._ends) if steps is None else steps:
            self._ends.pop(step, None)
