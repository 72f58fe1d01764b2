"""Evaluations as Slurm jobs, submitted through submitit and watched through `squeue` and files of their own.

Accounting is not needed: the job itself writes how its evaluation ended, whole or not at all. A job goes on
without the sidecar; its name holds the token, so that the next one finds it even if its number was lost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from eval_sidecar.errors import BusyError, LaunchError, UsageError
from eval_sidecar.installation import install_command
from eval_sidecar.launchers.base import FRAME, JobState, describe_job
from eval_sidecar.launchers.slurm_queue import (
    PATIENCE,
    Queue,
    QueuedJob,
    accounted_job,
    refusal,
    state_from_output,
)
from eval_sidecar.paths import JobPaths
from eval_sidecar.system.logs import last_line
from eval_sidecar.types import Handle, Job, JobPhase

if TYPE_CHECKING:
    from submitit import SlurmExecutor

#: The value of "launcher" in the handles of these jobs.
KIND = "slurm"
#: Parameters of sbatch that the launcher needs as it sets them.
_OURS = ("array", "clusters", "error", "job-name", "output", "signal", "wait")
#: Parameters with which sbatch submits nothing, something else, or does not say what.
_NO_SUBMISSION = ("help", "parsable", "quiet", "test-only", "usage", "version", "wrap")
#: Variables of sbatch whose names differ from the option that they stand for.
_VARIABLES = {
    "array": "ARRAY_INX",
    "mem": "MEM_PER_NODE",
    "switches": "REQ_SWITCH",
    "time": "TIMELIMIT",
}
#: States that the evaluation itself has caused, and what they mean.
_CAUSED_BY_EVALUATION = {
    "TIMEOUT": "it took longer than its time limit (--slurm-time)",
    "DEADLINE": "it was not done by its deadline",
    "OUT_OF_MEMORY": "it needed more memory than it was given (--slurm-extra mem=…)",
}
#: Reasons for a failure that the machine has caused.
_CAUSED_BY_MACHINE = ("JobLaunchFailure", "NodeDown", "PartitionDown", "SystemFailure")
# Refusals because of the parameters, not because of the cluster's current state.
_MISTAKE = re.compile(
    r"Try .sbatch --help|mutually exclusive|is not a valid|reservation is invalid"
    r"|Time limit specification required|group not permitted to use this partition"
    r"|Job dependency problem|Access/permission denied"
    r"|unrecognized option|\binvalid (?!auth|job credential|user id)",
    re.IGNORECASE,
)
# Slurm says this of jobs that fit no node; with --test-only, also while the nodes that they fit are down.
_FITS_NO_NODE = "node configuration is not available"

#: Seconds between two looks at the files of jobs under way.
_PAUSE = 10.0
#: Seconds that a job which is gone from the queue waits for an answer of the accounting.
_ACCOUNTING_PATIENCE = 600.0
#: Exit code of timeout(1) if it has ended the command.
_TIMED_OUT = 124

# Runs in the job: everything goes to the evaluation's own log, and its exit code beside it. Slurm says
# which GPUs the job has, as CUDA_VISIBLE_DEVICES; if it does not, the job gets those of --cuda-list.
_WRAPPER = rf"""{FRAME}
exit_file=$1 begun=$2 log=$3 heading=$4 devices=${{CUDA_VISIBLE_DEVICES:-$5}}; shift 5
rm -f -- "$exit_file"
exec >>"$log" 2>&1 </dev/null && : >"$begun" || exit 1
export CUDA_LIST="${{devices//,/ }}"
case $CUDA_LIST in GPU-*|MIG-*) export CUDA_VISIBLE_DEVICES="${{CUDA_LIST// /,}}" ;; esac
begin "$heading" "$CUDA_LIST, Slurm job ${{SLURM_JOB_ID:-}}"
"$@"; code=$?
end "$code"
echo "$code" > "$exit_file.tmp" && mv "$exit_file.tmp" "$exit_file"
exit "$code"
"""


def require_slurm() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        UsageError: if something is missing, with its name.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UsageError(
            f"slurm: submitit is not installed for this Python: run {install_command('slurm')}",
            setting="launcher",
        )
    for program in ("sbatch", "squeue", "scancel", "srun"):
        if shutil.which(program) is None:
            raise UsageError(
                f"slurm: {program} is not on the PATH; run this on a login node of the cluster",
                setting="launcher",
            )


def sbatch_parameters(extras: Sequence[str], **named: Optional[str]) -> dict[str, Any]:
    """Turn flags into parameters of sbatch; those that are None are left to the cluster.

    Args:
        extras: Texts such as ``mem=64G``, ``cpus-per-task=8`` or ``exclusive``.
        named: Parameters that have a flag of their own.

    Raises:
        UsageError: if a parameter is not allowed, with its name.
    """
    parameters: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for text in extras:
        name, has_value, value = text.lstrip("-").partition("=")
        name = name.strip().replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UsageError(
                f"{text}: give a long option of sbatch, such as mem=64G or exclusive",
                setting="slurm_extra",
            )
        if name in _OURS:
            raise UsageError(f"{text}: the sidecar sets {name} itself", setting="slurm_extra")
        if name in _NO_SUBMISSION:
            raise UsageError(
                f"{text}: with {name}, sbatch does not submit the evaluation", setting="slurm_extra"
            )
        parameters[name] = value if has_value else True
    # Slurm's own requeueing has no limit, and would start with the earlier run's numbers in place.
    if "requeue" not in parameters:
        parameters["no-requeue"] = True
    return parameters


class SlurmLauncher:
    """Submits each evaluation as a job of its own.

    Args:
        max_jobs: How many may be in the queue or running at a time.
        parameters: Of sbatch, from `sbatch_parameters`.
        cuda_list: ``CUDA_LIST`` for a job to which Slurm shows no GPUs.
        ask_every: Seconds between two calls of squeue.
        monotonic: Seconds since some moment, never set back.
    """

    def __init__(
        self,
        max_jobs: int,
        parameters: Mapping[str, Any],
        cuda_list: str,
        *,
        ask_every: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_jobs = max_jobs
        self._parameters = dict(parameters)
        self._cuda_list = cuda_list
        self._ask_every = ask_every
        self._queue = Queue(ask_every, monotonic)
        self._was_accepted = False

    def check_parameters(self) -> None:
        """Ask Slurm whether it would accept such jobs; without an answer, assume so.

        Raises:
            UsageError: if the parameters are wrong, with Slurm's message.
        """
        with _without_settings_of_others(self._parameters):
            said = refusal(self._parameters)
        if _MISTAKE.search(said):
            raise _refused(said)

    @property
    def pause(self) -> float:
        """More often than the controller is asked: a success shows in the job's own file."""
        return min(_PAUSE, self._ask_every)

    def free_slots(self, running: Sequence[Handle]) -> int:
        """Return how many more jobs may be submitted beside these."""
        return max(0, self._max_jobs - len(running))

    def reserve(self, job: Job) -> Handle:
        """Return the job's name, and the folder of all its files, which must be on a shared disk."""
        name = f"eval-{job.step}.{job.token}"
        return {"launcher": KIND, "name": name, "folder": str(JobPaths(job.log).slurm(name))}

    def submit(self, job: Job, running: Sequence[Handle]) -> Handle:
        """Hand the job to Slurm through submitit."""
        from submitit.core.utils import CommandFunction, FailedJobError, FailedSubmissionError

        if self._queue.jobs() is None:
            raise BusyError(f"checkpoint-{job.step}: not submitted, {self._queue.problem}; will retry")
        handle = self.reserve(job)
        try:
            Path(handle["folder"]).mkdir(parents=True, exist_ok=True)
            executor = _make_executor(handle["folder"])
            executor.update_parameters(
                job_name=handle["name"],
                time=None,  # the partition's own limit, not submitit's five minutes
                wckey=None,
                signal_delay_s=0,  # no signal before the time limit: it would end the evaluation early
                use_srun=False,
                stderr_to_stdout=True,
                additional_parameters={
                    **self._parameters,
                    "output": str(_file(handle, "out")).replace("%", "%%"),
                },
            )
            # submitit prints what sbatch says; the error has it too.
            with _without_settings_of_others(self._parameters), contextlib.redirect_stderr(io.StringIO()):
                submitted = executor.submit(
                    CommandFunction(self._command(job, handle), verbose=False, cwd=job.cwd)
                )
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            return self._settle_refused(job, handle, error)
        self._was_accepted = True
        self._queue.forget()
        return {**handle, "job_id": submitted.job_id}

    def poll(self, handle: Handle) -> JobState:
        """Return where a job stands, from its exit file and the queue; one call of squeue serves all jobs."""
        if _exit_code(handle) == 0:
            return JobState(JobPhase.ENDED, 0)
        jobs = self._queue.jobs()
        if jobs is None:
            return JobState(JobPhase.QUEUED, reason=f"{_label(handle)}: not known, {self._queue.problem}")
        if _was_cut_short(handle):
            return JobState(JobPhase.EVICTED, reason=f"{_label(handle)}: its submission was interrupted")
        seen = jobs.get(handle["name"])
        if seen is None:
            seen, doubt = self._look_for(handle)
            if doubt:
                return JobState(JobPhase.QUEUED, reason=f"{_label(handle)}: not in the queue, {doubt}")
        if seen is None or seen.has_ended:
            return _judge(handle, seen)
        return JobState(
            JobPhase.RUNNING if seen.computes else JobPhase.QUEUED, None, str(seen), seen.began, seen.used
        )

    def cancel(self, handle: Handle) -> bool:
        """Cancel the job in Slurm, even if the queue does not show it: no second one may run beside it.

        This does not wait for its end: a job may take minutes to end, or hours if its node does not answer.
        """
        if _exit_code(handle) is not None:
            return True
        seen = (self._queue.jobs() or {}).get(handle["name"])
        if seen is not None and seen.has_ended:
            return True
        problem = self._queue.cancel(handle["name"])
        jobs = self._queue.jobs(now=True)
        if problem or jobs is None:
            raise LaunchError(f"{_label(handle)}: cannot be ended, {problem or self._queue.problem}")
        return handle["name"] not in jobs or jobs[handle["name"]].has_ended

    def detach(self, handle: Handle) -> bool:
        """Return True, and leave the job to Slurm: login nodes restart, and queues are long."""
        return True

    def _look_for(self, handle: Handle) -> tuple[Optional[QueuedJob], str]:
        """Return what is known of a job that the queue does not show, and why it may still be there."""
        missing_for = self._queue.missing_for(handle["name"])
        if missing_for < self._ask_every:
            return None, "which is asked again"
        if _exit_code(handle) is not None or state_from_output(_file(handle, "out")):
            return None, ""
        # Only accounting tells whether a user has cancelled it: worth waiting for, but not without end.
        seen, problem = accounted_job(handle["name"])
        return seen, problem if missing_for < _ACCOUNTING_PATIENCE else ""

    def _command(self, job: Job, handle: Handle) -> list[str]:
        own = [str(_file(handle, suffix)) for suffix in ("exit", "begun")]
        variables = [f"{name}={value}" for name, value in job.env.items()]
        own += [str(job.log), describe_job(job), self._cuda_list]
        return ["bash", "-c", _WRAPPER, "eval-sidecar-job", *own, "env", *variables, *job.argv]

    def _settle_refused(self, job: Job, handle: Handle, error: Exception) -> Handle:
        """Handle a failed sbatch: it may have timed out after Slurm accepted the job."""
        jobs = self._queue.jobs(now=True)
        if jobs is None or handle["name"] in jobs:
            return handle  # the next query of the queue tells
        shutil.rmtree(handle["folder"], ignore_errors=True)  # a file that cannot be removed does no harm
        said = " ".join(str(error).split())
        if getattr(error.__cause__, "returncode", None) == _TIMED_OUT:
            said = f"sbatch did not end within {PATIENCE:.0f} s {said}".rstrip()
        is_mistake = _MISTAKE.search(said) or _FITS_NO_NODE in said
        # If Slurm has accepted such a job before, the flags are right.
        if not isinstance(error, OSError) and not self._was_accepted and is_mistake:
            raise _refused(said)
        raise BusyError(f"checkpoint-{job.step}: not submitted ({said}); will retry") from error


def _make_executor(folder: str) -> SlurmExecutor:
    """Return submitit's executor for one job's folder; its sbatch is killed if it takes too long."""
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            sbatch = super()._make_submission_command(submission_file_path)
            return ["timeout", "--kill-after=5", str(PATIENCE), *sbatch]

    return Executor(folder=folder)


def _refused(said: str) -> UsageError:
    return UsageError(f"Slurm refuses such jobs ({said}); fix the settings for Slurm and start again")


def _judge(handle: Handle, seen: Optional[QueuedJob]) -> JobState:
    """Return the outcome of a job that Slurm has ended or forgotten."""
    code = _exit_code(handle)
    state = seen.state if seen else ""
    if code is not None and state in ("", "COMPLETED", "FAILED"):
        said = f"{_label(handle, seen)}: the evaluation script ended with exit code {code}"
        return JobState(JobPhase.ENDED, code, said if code else None)
    if state in ("", "FAILED"):
        state = state_from_output(_file(handle, "out")) or state
    reason = seen.reason if seen else ""
    said = f"{_label(handle, seen)}: {state}" + (f" ({reason})" if reason else "")
    if state == "COMPLETED":
        return JobState(JobPhase.ENDED, 0)
    if state == "CANCELLED":
        return JobState(JobPhase.CANCELLED, reason=said)
    if state in _CAUSED_BY_EVALUATION:
        return JobState(JobPhase.ENDED, code, f"{said}, {_CAUSED_BY_EVALUATION[state]}")
    has_begun = _has(_file(handle, "begun"))
    if state == "FAILED" and not (has_begun and reason in _CAUSED_BY_MACHINE):
        when = "without an exit code of the evaluation" if has_begun else "before the evaluation began"
        printed = last_line(_file(handle, "out")) or "nothing was printed (is this folder on a shared disk?)"
        said = f"{said} {when}; {_file(handle, 'out')}: {printed}"
        return JobState(JobPhase.ENDED, code, said) if has_begun else JobState(JobPhase.EVICTED, reason=said)
    if not state:
        said = f"{_label(handle, seen)}: disappeared from the queue without a trace"
    return JobState(JobPhase.EVICTED, reason=said)


def _label(handle: Handle, seen: Optional[QueuedJob] = None) -> str:
    return f"Slurm job {seen.job_id if seen else handle.get('job_id', handle['name'])}"


def _file(handle: Handle, suffix: str) -> Path:
    """Return a file that the job leaves: ``exit`` (its exit code), ``begun`` (empty), ``out`` (of Slurm)."""
    return Path(handle["folder"]) / f"{handle['name']}.{suffix}"


def _has(path: Path) -> bool:
    """Return whether a file exists; until its folder is opened, NFS may not show it for a while."""
    try:
        return path in path.parent.iterdir()
    except OSError:
        return False


def _exit_code(handle: Handle) -> Optional[int]:
    """Return the exit code that the job has written; None if it has not."""
    path = _file(handle, "exit")
    try:
        return int(path.read_text()) if _has(path) else None
    except (OSError, ValueError):
        return None


def _was_cut_short(handle: Handle) -> bool:
    """Return whether the sidecar was killed before submitit had written the file that the job runs."""
    return "job_id" not in handle and not any(Path(handle["folder"]).glob("*_submitted.pkl"))


@contextlib.contextmanager
def _without_settings_of_others(parameters: Iterable[str]) -> Iterator[None]:
    """Hide variables that would overrule the job's parameters, or that come from a job that we run in.

    For sbatch, variables have priority over lines of the script; from a job it would inherit nodes and tasks.
    """
    ours = {*_OURS, "export", "open-mode", "requeue", "no-requeue", *parameters}
    hide = {f"SBATCH_{_VARIABLES.get(name, name.upper().replace('-', '_'))}" for name in ours}
    hide |= {"SLURM_CLUSTERS"}
    if "SLURM_JOB_ID" in os.environ:
        hide |= {name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"}
    hidden = {name: os.environ.pop(name) for name in hide if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
