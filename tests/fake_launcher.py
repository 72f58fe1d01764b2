"""A launcher that starts nothing: the test says how each job stands. Keeps the contract and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from eval_sidecar.errors import BusyError, LaunchError, UsageError
from eval_sidecar.launchers.base import JobState
from eval_sidecar.types import Handle, Job, JobPhase


class FakeLauncher:
    """Jobs in memory.

    Attributes:
        slots: How many jobs may run at a time.
        jobs: Every job submitted, in order.
        cancelled: Tokens of the jobs that were cancelled, in order.
        refusal: Why the next `submit` fails, or None.
        busy: Why no `submit` is taken at the moment, or None.
        mistake: Why no `submit` will ever be taken, or None.
        stuck: Why no `cancel` works at the moment, or None.
        slow: Whether a cancelled job goes on ending until the test says how it ended.
        reappears: Whether an evicted job turns out to run when it is cancelled.
        goes_on: Whether jobs go on without the sidecar.
    """

    pause = 0.25

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.jobs: list[Job] = []
        self.cancelled: list[str] = []
        self.refusal: Optional[str] = None
        self.busy: Optional[str] = None
        self.mistake: Optional[str] = None
        self.stuck: Optional[str] = None
        self.slow = False
        self.reappears = False
        self.goes_on = False
        self._states: dict[str, JobState] = {}

    @property
    def steps(self) -> list[int]:
        """The step of every job submitted, in order."""
        return [job.step for job in self.jobs]

    def running(self) -> list[int]:
        """The steps that are being evaluated now."""
        return [job.step for job in self.jobs if self._states[job.token].phase == JobPhase.RUNNING]

    def newest(self, step: int) -> Job:
        """The newest job of a step."""
        return next(job for job in reversed(self.jobs) if job.step == step)

    def end(self, step: int, exit_code: int = 0) -> None:
        """Let a step's newest job end."""
        self._states[self.newest(step).token] = JobState(JobPhase.ENDED, exit_code)

    def lose(self, step: int) -> None:
        """Let a step's newest job vanish without a trace."""
        self._states[self.newest(step).token] = JobState(JobPhase.LOST, reason="no trace of it")

    def queue(self, step: int, reason: str = "PENDING (Priority)") -> None:
        """Let a step's newest job wait for a machine."""
        self._states[self.newest(step).token] = JobState(JobPhase.QUEUED, reason=reason)

    def begin(self, step: int, when: float, used: Optional[float] = None) -> None:
        """Let a step's newest job get its machine; it may have computed for less time since."""
        state = JobState(JobPhase.RUNNING, reason="RUNNING on n1", began=when, used=used)
        self._states[self.newest(step).token] = state

    def evict(self, step: int) -> None:
        """Let the machine take a step's newest job away."""
        self._states[self.newest(step).token] = JobState(JobPhase.EVICTED, reason="job 7: NODE_FAIL")

    def cancel_by_hand(self, step: int) -> None:
        """Let somebody cancel a step's newest job."""
        self._states[self.newest(step).token] = JobState(JobPhase.CANCELLED, reason="job 7: CANCELLED")

    def run_out_of_time(self, step: int) -> None:
        """Let a step's newest job be ended for its own doing."""
        self._states[self.newest(step).token] = JobState(JobPhase.ENDED, reason="job 7: TIMEOUT")

    def go_elsewhere(self, step: int) -> None:
        """Let a step's newest job be on a machine that cannot be asked."""
        self._states[self.newest(step).token] = JobState(JobPhase.ELSEWHERE, reason="runs on another, or did")

    def free_slots(self, running: Sequence[Handle]) -> int:
        return max(0, self.slots - len(running))

    def submit(self, job: Job, running: Sequence[Handle]) -> Handle:
        assert self.free_slots(running) > 0, "submitted without a free slot"
        if self.refusal is not None:
            reason, self.refusal = self.refusal, None
            raise LaunchError(reason)
        if self.busy is not None:
            raise BusyError(self.busy)
        if self.mistake is not None:
            raise UsageError(self.mistake)
        self.jobs.append(job)
        self._states[job.token] = JobState(JobPhase.RUNNING)
        return {**self.reserve(job), "pid": len(self.jobs)}

    def reserve(self, job: Job) -> Handle:
        return {"token": job.token}

    def poll(self, handle: Handle) -> JobState:
        if "pid" not in handle:
            return JobState(JobPhase.LOST, reason="its start was interrupted")
        return self._states.get(handle["token"], JobState(JobPhase.LOST, reason="never heard of it"))

    def cancel(self, handle: Handle) -> bool:
        if self.stuck is not None:
            raise LaunchError(self.stuck)
        self.cancelled.append(handle["token"])
        if self.reappears and self.poll(handle).phase == JobPhase.EVICTED:
            self._states[handle["token"]] = JobState(JobPhase.RUNNING)
        if self.slow and self.poll(handle).phase == JobPhase.RUNNING:
            return False
        self._states[handle["token"]] = JobState(JobPhase.LOST, reason="cancelled")
        return True

    def detach(self, handle: Handle) -> bool:
        if not self.goes_on:
            self.cancel(handle)
        return self.goes_on
