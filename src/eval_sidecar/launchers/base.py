"""The contract between the sidecar and what runs evaluations: submit, poll, cancel.

All that a launcher must know of a job is in the job's handle, plain JSON that the ledger keeps, so that a
restarted sidecar finds the jobs of the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Protocol

from eval_sidecar.types import Handle, Job, JobPhase


@dataclass(frozen=True)
class JobState:
    """Where a job stands.

    Attributes:
        phase: Where it stands.
        exit_code: Of a job that has ended, if it has one.
        reason: More than the phase and the code say, in words; None if nothing is known.
        began: When a running job began to compute, seconds since the epoch; None if that is when it was
            submitted.
        used: Seconds that a running job has computed, if the launcher knows better than by ``began``: a
            job may have been suspended.
    """

    phase: JobPhase
    exit_code: Optional[int] = None
    reason: Optional[str] = None
    began: Optional[float] = None
    used: Optional[float] = None


class Launcher(Protocol):
    """Runs evaluations somewhere."""

    @property
    def pause(self) -> float:
        """Seconds between two looks at jobs under way."""
        ...

    def free_slots(self, running: Sequence[Handle]) -> int:
        """Return how many more jobs may be submitted beside these."""
        ...

    def reserve(self, job: Job) -> Handle:
        """Return a handle that finds the job if its submission is interrupted; saved before `submit`."""
        ...

    def submit(self, job: Job, running: Sequence[Handle]) -> Handle:
        """Start a job beside these and return at once.

        Raises:
            BusyError: if no job is accepted at the moment; nothing was started.
            LaunchError: if it cannot be started.
            UsageError: if no such job will ever be accepted, whatever the checkpoint; nothing was started.
        """
        ...

    def poll(self, handle: Handle) -> JobState:
        """Return where a job stands now. Raises nothing."""
        ...

    def cancel(self, handle: Handle) -> bool:
        """End a job with everything that it started; return True if nothing of it runs any more.

        False if it is still ending: ask again later. Idempotent.

        Raises:
            LaunchError: if it cannot be ended, or the scheduler does not answer.
        """
        ...

    def detach(self, handle: Handle) -> bool:
        """Prepare a job for the sidecar's end; return True if it goes on, for the next sidecar to collect.

        A job that cannot go on alone is ended.
        """
        ...
