"""The contract between the sidecar and what runs evaluations: submit, poll, cancel.

A launcher keeps nothing between calls. What it must know of a job is in the job's handle, plain JSON
that the ledger keeps, so that a restarted sidecar finds the jobs of the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Protocol

from eval_sidecar.types import Handle, Job

RUNNING = "running"
ENDED = "ended"  # by itself, with an exit code
LOST = "lost"  # without a trace: killed from outside, or the machine restarted


@dataclass(frozen=True)
class JobState:
    """Where a job stands.

    Attributes:
        phase: `RUNNING`, `ENDED` or `LOST`.
        exit_code: Of a job that has ended.
        reason: In words, where the launcher knows more than the code says.
    """

    phase: str
    exit_code: Optional[int] = None
    reason: Optional[str] = None


class Launcher(Protocol):
    """Runs evaluations somewhere."""

    def free_slots(self, running: Sequence[Handle]) -> int:
        """How many more jobs may be submitted beside these."""
        ...

    def submit(self, job: Job, running: Sequence[Handle]) -> Handle:
        """Start a job beside these and return at once.

        Raises:
            LaunchError: where it cannot be started.
        """
        ...

    def poll(self, handle: Handle) -> JobState:
        """Where a job stands now. Raises nothing."""
        ...

    def cancel(self, handle: Handle) -> None:
        """End a job with everything that it started; return when it has ended. Idempotent."""
        ...
