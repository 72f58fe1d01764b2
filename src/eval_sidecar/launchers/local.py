"""Evaluations on this machine's GPUs: each job gets its share of the list, and its own process group."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from eval_sidecar.errors import LaunchError
from eval_sidecar.launchers.base import FRAME, JobState, describe_job
from eval_sidecar.paths import JobPaths
from eval_sidecar.system.gpus import device_variables
from eval_sidecar.system.process import (
    ProcessIdentity,
    describe_signal,
    end_family,
    machine_elsewhere,
    this_machine,
)
from eval_sidecar.types import Handle, Job, JobPhase

#: Every process of a job inherits this variable, so that those that left its group are found.
_MARKER = "EVAL_SIDECAR_JOB"

# Runs the command and writes its exit code beside the log, whole or not at all: a sidecar that was
# restarted meanwhile is not the command's parent, and could not ask for it otherwise.
# What bash itself prints goes nowhere: else a log would end with its message on a command that was killed.
_WRAPPER = f"""{FRAME}
exit_file=$1 log=$2 heading=$3; shift 3
exec 3>&2 2>/dev/null
begin "$heading" "$CUDA_LIST"
"$@" 2>&3 3>&-; code=$?
end "$code"
echo "$code" > "$exit_file.tmp" && mv "$exit_file.tmp" "$exit_file"
exit "$code"
"""


class LocalLauncher:
    """Runs each job as a process group of its own, on one of the device lists.

    Args:
        device_lists: One value of ``CUDA_LIST`` for each job that may run at a time.
        grace_seconds: How long a cancelled job has to end on its own.
    """

    def __init__(self, device_lists: Sequence[str], grace_seconds: float = 10.0) -> None:
        self.device_lists = tuple(device_lists)
        self.grace_seconds = grace_seconds
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._mutex = threading.Lock()

    @property
    def pause(self) -> float:
        """Looking at a process costs next to nothing."""
        return 0.25

    def free_slots(self, running: Sequence[Handle]) -> int:
        """Return how many more jobs may be submitted beside these."""
        here = [handle for handle in running if machine_elsewhere(handle) is None]
        return max(0, len(self.device_lists) - len(here))

    def reserve(self, job: Job) -> Handle:
        """Return the token, which every process of the job carries, and the machine where they run."""
        return {
            "token": job.token,
            **this_machine(),
            "exit_file": str(JobPaths(job.log).exit_code(job.token)),
        }

    def submit(self, job: Job, running: Sequence[Handle]) -> Handle:
        """Start a job on a device list that none of the running ones has."""
        handle = self.reserve(job)
        taken = [other.get("devices") for other in running if machine_elsewhere(other) is None]
        free = [devices for devices in self.device_lists if devices not in taken] or list(self.device_lists)
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            for of_before in job.log.parent.glob(JobPaths(job.log).exit_code("*").name):
                of_before.unlink(missing_ok=True)
            with job.log.open("ab") as log:
                own = [handle["exit_file"], str(job.log), describe_job(job)]
                child = subprocess.Popen(
                    ["bash", "-c", _WRAPPER, "eval-sidecar-job", *own, *job.argv],
                    cwd=job.cwd,
                    env={**os.environ, **job.env, **device_variables(free[0]), _MARKER: job.token},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise LaunchError(
                f"checkpoint-{job.step}: the evaluation could not be started ({error})"
            ) from error
        self._children[child.pid] = child
        identity = ProcessIdentity.of(child.pid) or ProcessIdentity(child.pid, 0.0)
        return {**handle, **identity.to_json(), "devices": free[0]}

    def poll(self, handle: Handle) -> JobState:
        """Return where a job stands, from its exit file; as long as there is none, from its process."""
        elsewhere = machine_elsewhere(handle)
        if "pid" not in handle and elsewhere is None:
            return JobState(JobPhase.LOST, reason="its start was interrupted")
        # The order matters: the file appears before the process ends, so check the process first.
        code = self._reap(handle) if elsewhere is None else None
        alive = elsewhere is None and code is None and ProcessIdentity.from_json(handle).is_running()
        try:
            return JobState(JobPhase.ENDED, int(Path(handle["exit_file"]).read_text()))
        except FileNotFoundError:
            pass
        except ValueError as error:
            return JobState(JobPhase.LOST, reason=f"its exit file is unreadable ({error})")
        if elsewhere is not None:
            advice = "start the sidecar there, or abandon it with `eval-sidecar retry --sft-root … <step>`"
            return JobState(JobPhase.ELSEWHERE, reason=f"runs on {elsewhere}, or did; {advice}")
        if alive:
            return JobState(JobPhase.RUNNING)
        if code is not None and code >= 0:
            return JobState(JobPhase.ENDED, code)
        if code is not None:
            # Only the wrapper was killed: its children may go on, but not beside a new attempt.
            return JobState(JobPhase.LOST, reason=f"its process was {describe_signal(-code)}")
        return JobState(
            JobPhase.LOST,
            reason="its process is gone without an exit code (killed, or the machine restarted)",
        )

    def cancel(self, handle: Handle) -> bool:
        """End the job's process, its descendants and every process with its marker."""
        elsewhere = machine_elsewhere(handle)
        if elsewhere is not None:
            if Path(handle["exit_file"]).exists():
                return True
            raise LaunchError(f"its evaluation cannot be ended from here: it runs on {elsewhere}, or did")
        identity = ProcessIdentity.from_json(handle) if "pid" in handle else None
        left = end_family(identity, (_MARKER, handle["token"]), self.grace_seconds)
        self._reap(handle)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise LaunchError(
                f"its evaluation cannot be ended: pid {pids} is still running after SIGKILL"
                " (waits for a disk or a GPU, or is another user's); its GPU stays taken until then"
            )
        return True

    def detach(self, handle: Handle) -> bool:
        """End the job: GPUs must be free after `stop`. A job on another machine is left to that machine."""
        if machine_elsewhere(handle) is not None:
            return True
        self.cancel(handle)
        return False

    def _reap(self, handle: Handle) -> Optional[int]:
        """Return the exit code of a child of ours that has ended; it leaves no zombie."""
        with self._mutex:
            child = self._children.get(handle.get("pid", 0))
            code = child.poll() if child is not None else None
            if code is not None:
                del self._children[handle["pid"]]
            return code
