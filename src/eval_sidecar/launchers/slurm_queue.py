"""Asks Slurm about jobs: one `squeue` for all of them, `scancel`, accounting, and a job's own output.

A command that fails says nothing about any job.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

log = logging.getLogger(__name__)

#: Seconds that a command of Slurm's may take; without an answer, it gives up on its own long before.
PATIENCE = 60.0
#: States of a job that will not run any more (squeue(1), JOB STATE CODES).
_ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
_COMPUTES = frozenset({"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"})
# Variables with which a user changes what these commands choose and print: the launcher sets these itself.
_USERS_OWN = ("SQUEUE_", "SCANCEL_", "SACCT_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
_DURATION = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")
# What may follow the line of a job if its name, the last field, has a line break; ours have none.
_NO_JOB = re.compile(r"(?!\d\S*\|)")
# What slurmstepd writes into a job's output when it ends the job, and the state that this stands for.
_LAST_WORDS = re.compile(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+(?: due to ([^*]+?))? \*\*\*", re.I)
_CAUSES = {"TIME LIMIT": "TIMEOUT", "PREEMPTION": "PREEMPTED", "NODE FAILURE": "NODE_FAIL"}


@dataclass(frozen=True)
class QueuedJob:
    """One job as `squeue` shows it.

    Attributes:
        job_id: Slurm's number.
        state: ``PENDING``, ``RUNNING``, ``TIMEOUT``, …
        reason: Why it is in that state, as Slurm calls it; empty if there is none.
        began: Start, seconds since the epoch; None if it has not begun.
        used: Seconds that it has computed, without suspensions; None if unknown.
        nodes: Where it runs; empty if it does not.
    """

    job_id: str
    state: str
    reason: str = ""
    began: Optional[float] = None
    used: Optional[float] = None
    nodes: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs, and nothing will."""
        return self.state in _ENDED

    @property
    def computes(self) -> bool:
        """Whether it has a machine and uses it."""
        return self.state in _COMPUTES

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        nodes = f" on {self.nodes}" if self.nodes and self.computes else ""
        return f"Slurm job {self.job_id}: {self.state}{reason}{nodes}"


class Queue:
    """This user's jobs.

    Args:
        ask_every: Seconds for which an answer is good; the controller serves a whole cluster.
        monotonic: Seconds since some moment, never set back.
    """

    def __init__(self, ask_every: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ask_every = ask_every
        self._monotonic = monotonic
        self._asked: Optional[float] = None
        self._jobs: Optional[dict[str, QueuedJob]] = None
        self._answered = 0.0
        self._missing: dict[str, float] = {}  # name: when the first answer came that did not show it
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why there was no answer the last time; empty if there was one."""
        return self._problem

    def jobs(self, *, now: bool = False) -> Optional[Mapping[str, QueuedJob]]:
        """Return jobs by name, with those that have ended lately; None if Slurm does not answer.

        Args:
            now: Ask again, even if the last answer is new.
        """
        if now or self._asked is None or self._monotonic() - self._asked >= self._ask_every:
            # Every job of the user: a list of job ids is refused if Slurm has forgotten one of them.
            user = f"--user={os.getuid()}"
            said, problem = _call(
                # Not without --all: jobs in a hidden partition would count as gone.
                ["squeue", "--all", "--noheader", user, "--states=all", "--format=%i|%T|%r|%S|%M|%N|%j"],
                SLURM_TIME_FORMAT="%s",
            )
            try:
                self._jobs = None if said is None else _read_jobs(said)
            except ValueError as error:
                self._jobs, problem = None, f"squeue does not answer with jobs ({error})"
            self._asked = self._monotonic()
            self._tell(problem)
            if self._jobs is not None:
                self._answered = self._asked
                for name in self._jobs:
                    self._missing.pop(name, None)
        return self._jobs

    def missing_for(self, name: str) -> float:
        """Return for how many seconds, by the answers, the queue has not shown a job.

        One answer may omit running jobs, for example while user names cannot be looked up.
        """
        return self._answered - self._missing.setdefault(name, self._answered)

    def forget(self) -> None:
        """Drop the last answer: a job has been submitted since."""
        self._asked = None

    def cancel(self, name: str) -> str:
        """Ask Slurm to end a job; return why that failed, or an empty text."""
        return _call(["scancel", f"--user={os.getuid()}", f"--name={name}"], may_be_silent=True)[1]

    def _tell(self, problem: str) -> None:
        if problem and not self._problem:
            log.warning("%s; jobs under way are left as they are until it answers", problem)
        elif self._problem and not problem:
            log.info("squeue answers again")
        self._problem = problem


def accounted_job(name: str) -> tuple[Optional[QueuedJob], str]:
    """Ask accounting for a job that the queue has forgotten.

    Returns:
        The job, if accounting knows it; and why it does not answer; empty if it did, or if there is none.
    """
    if shutil.which("sacct") is None:
        return None, ""
    said, problem = _call(
        [
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            "--starttime=now-90days",
            f"--name={name}",
            "--format=JobID,State",
        ]
    )
    if "accounting storage is disabled" in problem:
        problem = ""
    job_id, _, state = (said or "").partition("\n")[0].partition("|")
    return QueuedJob(job_id, state.split()[0]) if state else None, problem  # "CANCELLED by 1000"


def refusal(parameters: Mapping[str, Any]) -> str:
    """Return why sbatch refuses a job with these parameters, or does not answer; empty if it accepts it.

    A job that cannot run now is refused too, for example if every node is drained.
    """
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in parameters.items()]
    return _call(["sbatch", "--test-only", *flags, "--wrap=true"], may_be_silent=True)[1]


def state_from_output(output: Path) -> str:
    """Return the state that Slurm's last message in a job's output stands for; empty if there is none."""
    try:
        text = output.read_text(errors="replace")
    except OSError:
        return ""
    if re.search(r"oom[-_]kill event", text):
        return "OUT_OF_MEMORY"
    said = [match.group(1) or "" for match in _LAST_WORDS.finditer(text)]
    if not said:
        return ""
    cause = said[-1].partition(",")[0]
    # Without a cause, or "due to signal Terminated", a user has cancelled it.
    return next((state for words, state in _CAUSES.items() if words in cause), "CANCELLED")


def _read_jobs(said: str) -> dict[str, QueuedJob]:
    """Return jobs by name. A line that cannot be read is an error: its job would count as gone."""
    jobs: dict[str, QueuedJob] = {}
    for line in said.split("\n"):
        fields = line.split("|", 6)
        if len(fields) == 7:
            job_id, state, reason, start, used, nodes, name = fields
            began = float(start) if start.isdecimal() and state in _COMPUTES else None
            reason = "" if reason == "None" else reason
            jobs[name] = QueuedJob(job_id, state, reason, began, _seconds(used), nodes)
        elif line and not (jobs and _NO_JOB.match(line)):
            raise ValueError(repr(line[:200]))
    return jobs


def _seconds(text: str) -> Optional[float]:
    """Return the seconds of ``[[days-]hours:]minutes:seconds``; None if it is anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _call(
    command: Sequence[str], *, may_be_silent: bool = False, **variables: str
) -> tuple[Optional[str], str]:
    """Return what a command printed and an empty text; or None and why it failed.

    Args:
        command: The program and its arguments.
        may_be_silent: Whether an error message and nothing else, with exit code 0, is a success.
        variables: Of the environment, beside what is there.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_USERS_OWN)}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            env={**kept, **variables},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{command[0]} does not answer ({error})"
    said = " ".join(done.stderr.split())
    # squeue also ends with 0 if it cannot look up the user, and so finds none of the jobs.
    if done.returncode or (said and not done.stdout.strip() and not may_be_silent):
        return None, f"{command[0]} does not answer ({said or f'exit code {done.returncode}'})"
    return done.stdout, ""
