"""The contract between the sidecar and what runs evaluations: submit, poll, cancel.

All that a launcher must know of a job is in the job's handle, plain JSON that the ledger keeps, so that a
restarted sidecar finds the jobs of the one before it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Protocol

from eval_sidecar.system.logs import OUR_MARK
from eval_sidecar.system.redaction import printable, without_secrets
from eval_sidecar.types import Handle, Job, JobPhase

#: Functions in bash that frame what a command prints into $log: ``begin HEADING GPUS``, ``end CODE``.
FRAME = rf"""
note() {{ printf '{OUR_MARK}%s\n' "$1"; }}
now() {{ date '+%Y-%m-%d %H:%M:%S %z'; }}
end_line() {{ [ -z "$(tail -c 1 -- "$log")" ] || echo; }}
begin() {{ end_line; note "began $(now) on $HOSTNAME, GPU $2"; printf '%s\n' "$1"; }}
end() {{
    local how="exit code $1" name
    if [ "$1" -gt 128 ] && name=$(kill -l "$(($1 - 128))" 2>/dev/null); then how="$how (SIG$name)"; fi
    end_line; note "ended with $how after $SECONDS s, $(now)"
}}
"""


def describe_job(job: Job) -> str:
    """Return what an attempt's log says of it at the beginning: its command, checkpoint and settings."""
    settings = dict(sorted(job.env.items()))
    checkpoint = settings.pop("CKPT_LIST", "")
    lines = (
        f"command: {shlex.join(job.argv)} (in {job.cwd})",
        f"checkpoint: {checkpoint}",
        f"settings: {' '.join(f'{name}={shlex.quote(value)}' for name, value in settings.items())}",
    )
    return "\n".join(OUR_MARK + without_secrets(printable(line)) for line in lines)


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
