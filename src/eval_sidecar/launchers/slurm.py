"""Evaluations as Slurm jobs, submitted through submitit and watched through `squeue` and files of their own.

Accounting is not needed: the job itself writes how its evaluation ended, whole or not at all. A job goes on
without the sidecar; its name holds the token, so that the next one finds it even if its number was lost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from eval_sidecar.errors import BusyError, LaunchError, UsageError
from eval_sidecar.files import last_line
from eval_sidecar.launchers.base import CANCELLED, ENDED, EVICTED, QUEUED, RUNNING, JobState
from eval_sidecar.launchers.slurm_queue import Queue, QueuedJob, accounted_state, state_from_output
from eval_sidecar.types import Handle, Job

#: The value of "launcher" in the handles of these jobs.
KIND = "slurm"
#: Parameters of sbatch that the launcher needs as it sets them.
_OURS = ("array", "clusters", "error", "job-name", "output", "signal", "wait")
#: States for which the evaluation itself is to blame, and why.
_OWN_DOING = {
    "TIMEOUT": "it took longer than its time limit (--slurm-time)",
    "DEADLINE": "it was not done by its deadline",
    "OUT_OF_MEMORY": "it needed more memory than it was given (--slurm-extra mem=…)",
}
#: Reasons of a failure for which the machine is to blame.
_MACHINES_DOING = ("JobLaunchFailure", "NodeDown", "PartitionDown", "SystemFailure")
# A user may have only so many jobs: QOSMaxSubmitJobPerUserLimit, AssocGrpSubmitJobsLimit, ...
_TOO_MANY_JOBS = re.compile(r"\w*Submit\w*Limit")
# How often to look while a cancelled job ends, in seconds.
_LOOK_EVERY = 0.5

# Runs in the job: everything goes to the evaluation's own log, and its exit code beside it. Slurm says
# which GPUs the job has, as CUDA_VISIBLE_DEVICES; where it does not, --cuda-list is what there is.
_WRAPPER = """
exit_file=$1 log=$2 devices=${CUDA_VISIBLE_DEVICES:-$3}; shift 3
rm -f -- "$exit_file"
exec >>"$log" 2>&1 </dev/null || exit 1
export CUDA_LIST="${devices//,/ }"
"$@"; code=$?
echo "$code" > "$exit_file.tmp" && mv "$exit_file.tmp" "$exit_file"
exit "$code"
"""


def require_slurm() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        UsageError: naming what is missing.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UsageError(
            "--launcher slurm: submitit is not installed for this Python: pip install 'eval-sidecar[slurm]'"
        )
    for program in ("sbatch", "squeue", "scancel", "srun"):
        if shutil.which(program) is None:
            raise UsageError(
                f"--launcher slurm: {program} is not on the PATH; run this on a login node of the cluster"
            )


def sbatch_parameters(extras: Sequence[str], **named: Optional[str]) -> dict[str, Any]:
    """Turn flags into parameters of sbatch; those that are None are left to the cluster.

    Args:
        extras: Texts such as ``mem=64G``, ``cpus-per-task=8`` or ``exclusive``.
        named: Parameters that have a flag of their own.

    Raises:
        UsageError: naming the parameter that cannot be given.
    """
    parameters: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for text in extras:
        name, has_value, value = text.lstrip("-").partition("=")
        name = name.strip().replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UsageError(
                f"--slurm-extra {text}: give a long option of sbatch, such as mem=64G or exclusive"
            )
        if name in _OURS:
            raise UsageError(f"--slurm-extra {text}: the sidecar sets {name} itself")
        parameters[name] = value if has_value else True
    # Slurm's own requeueing has no bound, and starts with the numbers of the run before in place.
    if "requeue" not in parameters:
        parameters["no-requeue"] = True
    return parameters


class SlurmLauncher:
    """Submits each evaluation as a job of its own.

    Args:
        max_jobs: How many may be in the queue or running at a time.
        parameters: Of sbatch, from `sbatch_parameters`.
        cuda_list: ``CUDA_LIST`` for a job to which Slurm shows no GPUs.
        ask_every: Seconds between two questions to the controller.
        grace_seconds: How long a cancelled job may take to end.
        monotonic: Seconds since some moment, never set back.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        max_jobs: int,
        parameters: Mapping[str, Any],
        cuda_list: str,
        *,
        ask_every: float = 10.0,
        grace_seconds: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._max_jobs = max_jobs
        self._parameters = dict(parameters)
        self._cuda_list = cuda_list
        self._ask_every = ask_every
        self._grace_seconds = grace_seconds
        self._monotonic = monotonic
        self._sleep = sleep
        self._queue = Queue(ask_every, monotonic)

    @property
    def pause(self) -> float:
        """As often as the controller is asked."""
        return self._ask_every

    def free_slots(self, running: Sequence[Handle]) -> int:
        """How many more jobs may be submitted beside these."""
        return max(0, self._max_jobs - len(running))

    def announce(self, job: Job) -> Handle:
        """The job's name, and the folder of submitit's files and its own, which must be on a shared disk."""
        folder = job.log.parent / "slurm"
        return {"launcher": KIND, "name": f"eval-{job.step}.{job.token}", "folder": str(folder)}

    def submit(self, job: Job, running: Sequence[Handle]) -> Handle:
        """Hand the job to Slurm through submitit."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if self._queue.jobs() is None:
            raise BusyError(f"checkpoint-{job.step}: not submitted, {self._queue.problem}; it is tried again")
        handle = self.announce(job)
        try:
            Path(handle["folder"]).mkdir(parents=True, exist_ok=True)
            executor = submitit.SlurmExecutor(folder=handle["folder"])
            executor.update_parameters(
                job_name=handle["name"],
                time=None,  # the partition's own limit, not submitit's five minutes
                wckey=None,
                signal_delay_s=0,  # no signal before the time limit: it would end the evaluation early
                use_srun=False,
                stderr_to_stdout=True,
                additional_parameters={
                    **self._parameters,
                    "output": str(_output(handle)).replace("%", "%%"),
                },
            )
            with _outside_of_a_job():
                submitted = executor.submit(
                    submitit.helpers.CommandFunction(self._command(job, handle), verbose=False, cwd=job.cwd)
                )
        except (FailedJobError, FailedSubmissionError) as error:
            return self._settle_refused(job, handle, " ".join(str(error).split()))
        except OSError as error:
            raise LaunchError(f"checkpoint-{job.step}: could not be submitted ({error})") from error
        self._queue.forget()
        return {**handle, "job_id": submitted.job_id}

    def poll(self, handle: Handle) -> JobState:
        """Where a job stands, from its exit file and the queue; all jobs share one question to Slurm."""
        if _exit_code(handle) == 0:
            return JobState(ENDED, 0)
        jobs = self._queue.jobs()
        if jobs is None:
            return JobState(QUEUED, reason=f"{_label(handle)}: not known, {self._queue.problem}")
        seen = jobs.get(handle["name"])
        if seen is None or seen.has_ended:
            return _judge(handle, seen)
        if _was_cut_short(handle, seen):
            return JobState(EVICTED, reason=f"Slurm job {seen.job_id}: its submission was cut short")
        return JobState(RUNNING if seen.computes else QUEUED, reason=str(seen), began=seen.began)

    def cancel(self, handle: Handle) -> None:
        """Cancel the job in Slurm, and wait until nothing of it runs; nothing to do where it has ended."""
        if _exit_code(handle) is not None or not self._may_run(handle):
            return
        problem = self._queue.cancel(handle["name"])
        deadline = self._monotonic() + self._grace_seconds
        while not problem and self._may_run(handle, now=True):
            if self._monotonic() >= deadline:
                problem = f"it still runs {self._grace_seconds:.0f} s after scancel"
            self._sleep(_LOOK_EVERY)
        if problem:
            raise LaunchError(f"{_label(handle)}: cannot be ended, {problem}")

    def leave(self, handle: Handle) -> bool:
        """Leave the job to Slurm: login nodes restart, and queues are long."""
        return True

    def _command(self, job: Job, handle: Handle) -> list[str]:
        own = [str(_exit_file(handle)), str(job.log), self._cuda_list]
        variables = [f"{name}={value}" for name, value in job.env.items()]
        return ["bash", "-c", _WRAPPER, "eval-sidecar-job", *own, "env", *variables, *job.argv]

    def _settle_refused(self, job: Job, handle: Handle, said: str) -> Handle:
        """What follows from a failed sbatch: it may have timed out after the job was taken."""
        jobs = self._queue.jobs(now=True)
        if jobs is None or handle["name"] in jobs:
            return handle  # the next look at the queue tells
        if _TOO_MANY_JOBS.search(said):
            raise BusyError(
                f"checkpoint-{job.step}: Slurm takes no more jobs now ({said}); it is tried again"
            )
        raise LaunchError(f"checkpoint-{job.step}: Slurm refuses the job ({said})")

    def _may_run(self, handle: Handle, *, now: bool = False) -> bool:
        jobs = self._queue.jobs(now=now)
        return jobs is None or (handle["name"] in jobs and not jobs[handle["name"]].has_ended)


def _judge(handle: Handle, seen: Optional[QueuedJob]) -> JobState:
    """What became of a job that Slurm has ended or forgotten."""
    code = _exit_code(handle)
    state = seen.state if seen else ""
    if code is not None and state in ("", "COMPLETED", "FAILED"):
        said = f"{_label(handle, seen)}: the evaluation script ended with exit code {code}"
        return JobState(ENDED, code, said if code else None)
    if state in ("", "FAILED"):
        state = state_from_output(_output(handle)) or state or accounted_state(handle["name"])
    reason = seen.reason if seen else ""
    said = f"{_label(handle, seen)}: {state}" + (f" ({reason})" if reason else "")
    if state == "COMPLETED":
        return JobState(ENDED, 0)
    if state == "CANCELLED":
        return JobState(CANCELLED, reason=said)
    if state in _OWN_DOING:
        return JobState(ENDED, code, f"{said}, {_OWN_DOING[state]}")
    if state == "FAILED" and reason not in _MACHINES_DOING:
        words = last_line(_output(handle)) or "nothing was printed (is this folder on a shared disk?)"
        said = f"{said} without an exit code of the evaluation; {_output(handle)}: {words}"
        return JobState(ENDED, code, said)
    if not state:
        said = f"{_label(handle, seen)}: gone from the queue without a trace"
    return JobState(EVICTED, reason=said)


def _label(handle: Handle, seen: Optional[QueuedJob] = None) -> str:
    return f"Slurm job {seen.job_id if seen else handle.get('job_id', handle['name'])}"


def _exit_file(handle: Handle) -> Path:
    return Path(handle["folder"]) / f"{handle['name']}.exit"


def _output(handle: Handle) -> Path:
    return Path(handle["folder"]) / f"{handle['name']}.out"


def _exit_code(handle: Handle) -> Optional[int]:
    """How the evaluation ended, by the job's own word; None where it has not said so."""
    path = _exit_file(handle)
    try:
        # NFS goes on for a while saying that a file is not there, unless its folder is opened anew.
        return int(path.read_text()) if path in path.parent.iterdir() else None
    except (OSError, ValueError):
        return None


def _was_cut_short(handle: Handle, seen: QueuedJob) -> bool:
    """Whether the sidecar was killed before submitit had put what the job is to do where the job looks."""
    return "job_id" not in handle and not (Path(handle["folder"]) / f"{seen.job_id}_submitted.pkl").exists()


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hide a job that this process itself runs in: sbatch would take over its shape and contradict itself."""
    inside = "SLURM_JOB_ID" in os.environ
    names = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names} if inside else {}
    try:
        yield
    finally:
        os.environ.update(hidden)
