"""What follows from what Slurm says, and from what it does not say. Its programs are scripts of the test's.

What can be had of a real Slurm is tested there (`integration/test_slurm.py`): these are the answers that one
node does not give, such as a failed node or a controller that goes away half-way through.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from eval_sidecar.errors import BusyError, LaunchError, UsageError
from eval_sidecar.launchers.base import JobState
from eval_sidecar.launchers.slurm import SlurmLauncher, require_slurm, sbatch_parameters
from eval_sidecar.types import Handle, Job, JobPhase

TOKEN = "0123456789abcdef"
NAME = f"eval-495.{TOKEN}"
DOWN = "slurm_load_jobs error: Unable to contact slurm controller"
ASK_EVERY = 10.0
needs_submitit = pytest.mark.slurm


@dataclass
class Slurm:
    """A controller as the commands show it, in a folder of files.

    Attributes:
        folder: The scripts, what they print, and how often they were called.
        now: The launcher's clock.
    """

    folder: Path
    now: float = 0.0
    job: Job = field(init=False)

    def __post_init__(self) -> None:
        self.job = Job(495, TOKEN, ("true",), {}, self.folder, self.folder / "logs" / "checkpoint-495.log")
        self.script("squeue", f'[ ! -e {self.folder}/down ] || {{ echo "{DOWN}" >&2; exit 1; }}')
        for name in ("sbatch", "scancel", "sacct", "srun"):
            self.script(name, "")

    def script(self, name: str, body: str) -> None:
        """Make a command that notes its arguments, does this, and prints what `says` gave it."""
        path = self.folder / name
        calls = f'echo "$*" >>{name}.calls; env >{name}.env'
        lines = ["#!/bin/sh", f'cd "{self.folder}"', calls, body]
        path.write_text("\n".join([*lines, f"cat {name}.says 2>/dev/null || :", ""]))
        path.chmod(0o755)

    def says(self, name: str, text: str) -> None:
        (self.folder / f"{name}.says").write_text(text)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def shows(
        self, state: str, reason: str = "None", *, start: str = "N/A", used: str = "0:00", name: str = NAME
    ) -> None:
        """Let `squeue` show the job in this state, beside one of somebody else's making."""
        self.says(
            "squeue", f"7|{state}|{reason}|{start}|{used}|n1|{name}\n8|RUNNING|None|5|1:00|n2|another | job\n"
        )

    def forgets(self) -> None:
        """Let `squeue` know nothing of the job any more."""
        self.shows("RUNNING", name="a later job")

    def goes_down(self) -> None:
        (self.folder / "down").touch()

    def comes_back(self) -> None:
        (self.folder / "down").unlink()

    def leaves(self, suffix: str, text: str) -> None:
        """Let the job leave a file of its own: ``begun``, ``exit`` or ``out``."""
        path = Path(self.handle["folder"]) / f"{NAME}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def launcher(self, **parameters: object) -> SlurmLauncher:
        return SlurmLauncher(
            *(2, parameters, "0 1"),
            ask_every=ASK_EVERY,
            monotonic=lambda: self.now,
        )

    @property
    def handle(self) -> Handle:
        """The handle of the job, as a ledger holds it after it was submitted."""
        return {**self.launcher().reserve(self.job), "job_id": "7"}

    def poll(self) -> JobState:
        return self.launcher().poll(self.handle)

    def poll_twice(self) -> JobState:
        """What follows from two answers of the queue, one after the other."""
        launcher = self.launcher()
        launcher.poll(self.handle)
        self.now += ASK_EVERY
        return launcher.poll(self.handle)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return Slurm(tmp_path)


# -- a job that is under way -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "SUSPENDED", "REQUEUE_HOLD"])
def test_a_job_without_a_machine_is_queued_with_slurms_reason(slurm, state):
    slurm.shows(state, "Resources", start="1700000000")
    assert slurm.poll() == JobState(JobPhase.QUEUED, reason=f"Slurm job 7: {state} (Resources)", used=0.0)


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_a_job_with_a_machine_runs_since_slurm_started_it(slurm, state):
    slurm.shows(state, start="1700000000", used="1:05")
    said = f"Slurm job 7: {state} on n1"
    assert slurm.poll() == JobState(JobPhase.RUNNING, reason=said, began=1_700_000_000.0, used=65.0)


@pytest.mark.parametrize(
    ("shown", "seconds"),
    [("0:05", 5), ("10:00", 600), ("1:00:01", 3601), ("2-01:00:00", 176_400), ("INVALID", None)],
)
def test_how_long_a_job_has_computed_is_slurms_own_count(slurm, shown, seconds):
    slurm.shows("RUNNING", start="5", used=shown)
    assert slurm.poll().used == seconds


def test_an_evaluation_that_has_failed_waits_for_slurms_reason_before_it_is_judged(slurm):
    slurm.leaves("exit", "137\n")
    slurm.shows("RUNNING", start="5")
    assert slurm.poll().phase == JobPhase.RUNNING


def test_one_question_is_enough_for_all_jobs_and_good_for_a_while(slurm):
    slurm.shows("RUNNING", start="5")
    launcher = slurm.launcher()
    for _ in range(3):
        launcher.poll(slurm.handle)
    slurm.now += ASK_EVERY - 1
    launcher.poll({**slurm.handle, "name": "eval-500.another"})
    assert len(slurm.calls("squeue")) == 1
    slurm.now += 1
    launcher.poll(slurm.handle)
    assert len(slurm.calls("squeue")) == 2


def test_a_users_own_settings_of_squeue_do_not_hide_jobs(slurm, monkeypatch):
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SQUEUE_PARTITION", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "PENDING")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    slurm.shows("RUNNING", start="5")
    slurm.poll()
    seen = (slurm.folder / "squeue.env").read_text()
    assert "SQUEUE_" not in seen and "SLURM_CLUSTERS" not in seen
    assert "SLURM_TIME_FORMAT=%s" in seen
    assert "--all" in slurm.calls("squeue")[0], "also those of hidden partitions"


# -- a controller that does not answer -------------------------------------------------------------------


def test_no_answer_is_not_the_end_of_a_job(slurm):
    slurm.goes_down()
    state = slurm.poll()
    assert state.phase == JobPhase.QUEUED
    assert DOWN in state.reason and "Slurm job 7" in state.reason


def test_a_missing_squeue_is_not_the_end_of_a_job(slurm, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm.poll().phase == JobPhase.QUEUED


def test_an_answer_that_is_no_list_of_jobs_is_not_the_end_of_a_job(slurm):
    slurm.says("squeue", "This cluster is under maintenance.\n")
    state = slurm.poll()
    assert state.phase == JobPhase.QUEUED and "under maintenance" in state.reason


def test_an_answer_of_nothing_but_an_error_is_not_the_end_of_a_job(slurm):
    slurm.script("squeue", "echo 'squeue: error: Invalid user: 4242' >&2")
    state = slurm.poll_twice()
    assert state.phase == JobPhase.QUEUED and "Invalid user: 4242" in state.reason


def test_a_job_that_one_answer_leaves_out_goes_on(slurm):
    launcher = slurm.launcher()
    slurm.shows("RUNNING", start="5")
    assert launcher.poll(slurm.handle).phase == JobPhase.RUNNING
    for _ in range(2):  # times that the list is empty
        slurm.says("squeue", "")
        for seconds in (ASK_EVERY, ASK_EVERY / 2):  # two looks at one answer
            slurm.now += seconds
            state = launcher.poll(slurm.handle)
            assert state.phase == JobPhase.QUEUED and "not in the queue" in state.reason
        slurm.shows("RUNNING", start="5")
        slurm.now += ASK_EVERY / 2
        assert launcher.poll(slurm.handle).phase == JobPhase.RUNNING
    assert slurm.calls("sacct") == []


def test_answers_that_come_at_once_are_not_two(slurm):
    launcher = slurm.launcher()
    slurm.forgets()
    for _ in range(2):
        launcher.cancel(slurm.handle)
        assert launcher.poll(slurm.handle).phase == JobPhase.QUEUED


def test_a_line_break_in_the_name_of_another_job_hides_no_job(slurm):
    line = "{}|RUNNING|None|5|1:00|n1|{}\n"
    slurm.says("squeue", line.format(6, "first line\n\nsecond | line\n2") + line.format(7, NAME))
    assert slurm.poll().phase == JobPhase.RUNNING


@pytest.mark.parametrize("cut", ["9|RUNN", "12_[1-3]|PENDING|None"])
def test_a_job_whose_line_is_cut_short_does_not_count_as_gone(slurm, cut):
    slurm.says("squeue", f"8|RUNNING|None|5|1:00|n2|another job\n{cut}")
    state = slurm.poll_twice()
    assert state.phase == JobPhase.QUEUED and "does not answer with jobs" in state.reason


def test_a_failure_is_not_judged_while_nobody_can_tell_the_reason(slurm):
    slurm.leaves("exit", "1\n")
    slurm.goes_down()
    assert slurm.poll().phase == JobPhase.QUEUED


def test_a_job_goes_on_where_it_was_when_the_controller_is_back(slurm, caplog):
    slurm.shows("RUNNING", start="5")
    slurm.goes_down()
    launcher = slurm.launcher()
    for _ in range(2):
        launcher.poll(slurm.handle)
        slurm.now += ASK_EVERY
    slurm.comes_back()
    assert launcher.poll(slurm.handle).phase == JobPhase.RUNNING
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and DOWN in said[0], "once, not at each look"


def test_a_success_needs_no_controller(slurm):
    slurm.goes_down()
    slurm.leaves("exit", "0\n")
    launcher = slurm.launcher()
    assert launcher.poll(slurm.handle) == JobState(JobPhase.ENDED, 0)
    launcher.cancel(slurm.handle)
    assert slurm.calls("squeue") == slurm.calls("scancel") == []


# -- a job that has ended --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED"])
def test_the_exit_code_is_what_the_evaluation_said_itself(slurm, state):
    slurm.leaves("exit", "3\n")
    slurm.shows(state, "NonZeroExitCode")
    said = "Slurm job 7: the evaluation script ended with exit code 3"
    assert slurm.poll() == JobState(JobPhase.ENDED, 3, said)


def test_a_completed_job_whose_exit_file_is_lost_has_succeeded(slurm):
    slurm.shows("COMPLETED")
    assert slurm.poll() == JobState(JobPhase.ENDED, 0)


@pytest.mark.parametrize(("state", "why"), [("TIMEOUT", "--slurm-time"), ("DEADLINE", "deadline")])
def test_what_took_too_long_has_ended_by_its_own_doing(slurm, state, why):
    slurm.shows(state, "TimeLimit")
    ended = slurm.poll()
    assert (ended.phase, ended.exit_code) == (JobPhase.ENDED, None)
    assert f"Slurm job 7: {state} (TimeLimit)" in ended.reason and why in ended.reason


@pytest.mark.parametrize("code", [None, 137])
def test_what_needed_too_much_memory_is_told_so_whatever_its_exit_code(slurm, code):
    if code is not None:
        slurm.leaves("exit", f"{code}\n")
    slurm.shows("OUT_OF_MEMORY", "OutOfMemory")
    ended = slurm.poll()
    assert (ended.phase, ended.exit_code) == (JobPhase.ENDED, code)
    assert "OUT_OF_MEMORY" in ended.reason and "mem=" in ended.reason


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        *(("PREEMPTED", "None"), ("NODE_FAIL", "NodeDown"), ("BOOT_FAIL", "None"), ("REVOKED", "None")),
        ("FAILED", "SystemFailure"),
    ],
)
def test_what_the_cluster_took_away_is_evicted(slurm, state, reason):
    slurm.leaves("begun", "")
    slurm.shows(state, reason)
    shown = f" ({reason})" if reason != "None" else ""
    assert slurm.poll() == JobState(JobPhase.EVICTED, reason=f"Slurm job 7: {state}{shown}")


def test_an_exit_code_from_a_preemptions_signal_is_not_the_evaluations_doing(slurm):
    slurm.leaves("exit", "143\n")
    slurm.shows("PREEMPTED")
    assert slurm.poll().phase == JobPhase.EVICTED


def test_what_somebody_cancelled_is_cancelled(slurm):
    slurm.shows("CANCELLED")
    assert slurm.poll() == JobState(JobPhase.CANCELLED, reason="Slurm job 7: CANCELLED")


def test_a_job_that_could_not_be_launched_tells_where_to_look(slurm):
    slurm.shows("FAILED", "JobLaunchFailure")
    ended = slurm.poll()
    assert ended.phase == JobPhase.EVICTED
    assert "(JobLaunchFailure) before the evaluation began" in ended.reason
    assert "is this folder on a shared disk?" in ended.reason and slurm.handle["folder"] in ended.reason


@pytest.mark.parametrize("found", ["in the queue", "in the accounting"])
def test_a_job_that_failed_before_its_evaluation_began_failed_by_the_machine(slurm, found):
    slurm.leaves("out", "/old/python: No module named submitit\n")
    slurm.shows("FAILED", "NonZeroExitCode")
    if found == "in the accounting":
        slurm.forgets()
        slurm.says("sacct", "7|FAILED\n")
    ended = slurm.poll_twice()
    assert (ended.phase, ended.exit_code) == (JobPhase.EVICTED, None)
    assert "No module named submitit" in ended.reason and f"{NAME}.out" in ended.reason


def test_a_job_that_failed_without_an_exit_code_after_its_evaluation_began_is_its_own_doing(slurm):
    slurm.leaves("begun", "")
    slurm.shows("FAILED", "NonZeroExitCode")
    ended = slurm.poll()
    assert (ended.phase, ended.exit_code) == (JobPhase.ENDED, None)
    assert "without an exit code" in ended.reason


# -- a job that Slurm has forgotten ----------------------------------------------------------------------

LAST_WORDS = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00{} ***\nTraceback\n"


@pytest.mark.parametrize(
    ("cause", "phase", "state"),
    [
        ("", JobPhase.CANCELLED, "CANCELLED"),
        (" DUE to SIGNAL Terminated", JobPhase.CANCELLED, "CANCELLED"),
        (" DUE TO TIME LIMIT", JobPhase.ENDED, "TIMEOUT"),
        (" DUE TO PREEMPTION", JobPhase.EVICTED, "PREEMPTED"),
        (" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", JobPhase.EVICTED, "NODE_FAIL"),
    ],
)
def test_slurms_last_words_in_the_output_say_why_a_forgotten_job_ended(slurm, cause, phase, state):
    slurm.leaves("out", f"submitit INFO\n{LAST_WORDS.format(cause)}")
    slurm.forgets()
    ended = slurm.poll_twice()
    assert (ended.phase, ended.exit_code) == (phase, None)
    assert f"Slurm job 7: {state}" in ended.reason


@pytest.mark.parametrize(
    "words", ["Detected 1 oom-kill event(s)", "Detected 1 oom_kill event in StepId=7.batch"]
)
def test_memory_that_ran_out_is_found_in_the_output_of_a_forgotten_job(slurm, words):
    slurm.leaves("out", f"slurmstepd: error: {words}. Some of the step tasks have been OOM Killed.\n")
    slurm.forgets()
    assert slurm.poll_twice().phase == JobPhase.ENDED


def test_a_forgotten_job_that_left_its_exit_code_is_judged_by_it(slurm):
    slurm.leaves("exit", "3\n")
    slurm.forgets()
    assert slurm.poll_twice().exit_code == 3


def test_accounting_is_asked_only_where_nothing_else_tells(slurm):
    slurm.forgets()
    slurm.says("sacct", "7|CANCELLED by 1000\n")
    assert slurm.poll_twice().phase == JobPhase.CANCELLED
    assert f"--name={NAME}" in slurm.calls("sacct")[0]


def test_an_accounting_that_does_not_answer_is_waited_for_and_not_for_ever(slurm):
    slurm.forgets()
    slurm.script("sacct", "echo sacct: error: slurmdbd: Connection refused >&2")
    launcher = slurm.launcher()
    launcher.poll(slurm.handle)
    for _ in range(2):
        slurm.now += 295
        state = launcher.poll(slurm.handle)
        assert state.phase == JobPhase.QUEUED and "slurmdbd: Connection refused" in state.reason
    slurm.now += ASK_EVERY
    assert launcher.poll(slurm.handle).phase == JobPhase.EVICTED


def test_an_accounting_that_answers_late_says_who_has_ended_the_job(slurm):
    slurm.forgets()
    slurm.script("sacct", "[ ! -e away ] || { echo away >&2; exit 1; }")
    (slurm.folder / "away").touch()
    launcher = slurm.launcher()
    launcher.poll(slurm.handle)
    slurm.now += 60
    assert launcher.poll(slurm.handle).phase == JobPhase.QUEUED
    (slurm.folder / "away").unlink()
    slurm.says("sacct", "7|CANCELLED by 1000\n")
    assert launcher.poll(slurm.handle).phase == JobPhase.CANCELLED


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        *(("PENDING", JobPhase.QUEUED), ("REQUEUED", JobPhase.QUEUED), ("SUSPENDED", JobPhase.QUEUED)),
        *(("RUNNING", JobPhase.RUNNING), ("COMPLETING", JobPhase.RUNNING)),
    ],
)
def test_a_job_that_only_accounting_shows_goes_on(slurm, state, phase):
    slurm.forgets()
    slurm.says("sacct", f"7|{state}\n")
    assert slurm.poll_twice() == JobState(phase, reason=f"Slurm job 7: {state}")


def test_a_job_that_vanished_is_cancelled_all_the_same_before_another_takes_its_place(slurm):
    slurm.forgets()
    assert slurm.launcher().cancel(slurm.handle) is True
    assert f"--name={NAME}" in slurm.calls("scancel")[0]


def test_a_job_that_vanished_without_a_trace_was_not_the_evaluations_doing(slurm):
    slurm.forgets()
    slurm.script("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    assert slurm.poll_twice() == JobState(
        JobPhase.EVICTED, reason="Slurm job 7: disappeared from the queue without a trace"
    )


# -- a job whose submission was interrupted ----------------------------------------------------------------


def test_a_job_without_a_number_is_found_by_its_name(slurm):
    handle = slurm.launcher().reserve(slurm.job)
    Path(handle["folder"]).mkdir(parents=True)
    (Path(handle["folder"]) / "7_submitted.pkl").touch()
    slurm.shows("RUNNING", start="5")
    assert slurm.launcher().poll(handle).phase == JobPhase.RUNNING


def test_a_job_that_would_wait_in_vain_for_what_it_is_to_do_is_evicted_and_can_be_cancelled(slurm):
    handle = slurm.launcher().reserve(slurm.job)
    slurm.shows("RUNNING", start="5")
    slurm.script("scancel", "sed -i 's/7|RUNNING/7|CANCELLED/' squeue.says")
    assert slurm.launcher().poll(handle).phase == JobPhase.EVICTED
    assert slurm.launcher().cancel(handle) is True
    assert f"--name={NAME}" in slurm.calls("scancel")[0]
    assert slurm.launcher().poll(handle).phase == JobPhase.EVICTED, "and not cancelled by somebody"


def test_a_job_that_has_waited_in_vain_for_what_it_is_to_do_is_evicted(slurm):
    slurm.leaves("out", "RuntimeError: Waited for 60 seconds but could not find submitted jobs in path\n")
    slurm.shows("FAILED", "NonZeroExitCode")
    assert slurm.launcher().poll(slurm.launcher().reserve(slurm.job)).phase == JobPhase.EVICTED


def test_a_job_that_was_never_submitted_is_evicted(slurm):
    slurm.forgets()
    assert slurm.launcher().poll(slurm.launcher().reserve(slurm.job)).phase == JobPhase.EVICTED


# -- cancelling ------------------------------------------------------------------------------------------


def test_a_cancel_waits_for_nothing_and_says_whether_slurm_shows_the_end(slurm):
    slurm.shows("RUNNING", start="5")
    slurm.script("scancel", "sed -i 's/7|RUNNING/7|COMPLETING/' squeue.says")
    launcher = slurm.launcher()
    assert launcher.cancel(slurm.handle) is False
    slurm.shows("CANCELLED")
    slurm.now += ASK_EVERY
    assert launcher.cancel(slurm.handle) is True


def test_a_cancel_of_what_has_ended_asks_for_nothing(slurm):
    slurm.shows("FAILED")
    assert slurm.launcher().cancel(slurm.handle) is True
    assert slurm.calls("scancel") == []


@pytest.mark.parametrize("broken", ["scancel", "squeue"])
def test_a_cancel_that_slurm_does_not_take_is_an_error_that_names_the_job(slurm, broken):
    slurm.shows("RUNNING", start="5")
    slurm.script(broken, f"echo {DOWN} >&2; exit 1")
    with pytest.raises(LaunchError, match=r"Slurm job 7: cannot be ended"):
        slurm.launcher().cancel(slurm.handle)


def test_a_job_is_left_running_where_the_sidecar_ends(slurm):
    slurm.shows("RUNNING", start="5")
    assert slurm.launcher().detach(slurm.handle) is True
    assert slurm.calls("scancel") == []


# -- submitting ------------------------------------------------------------------------------------------


@pytest.fixture
def accepting(slurm: Slurm) -> Slurm:
    """A Slurm that takes jobs and keeps what it was given."""
    pytest.importorskip("submitit")
    slurm.says("sbatch", "Submitted batch job 7\n")
    slurm.script("sbatch", 'cp "$1" submitted')
    return slurm


def directives(slurm: Slurm) -> list[str]:
    lines = (slurm.folder / "submitted").read_text().splitlines()
    return [line.partition("--")[2] for line in lines if line.startswith("#SBATCH")]


@needs_submitit
def test_a_job_is_submitted_with_what_the_user_asked_for_and_nothing_made_up(accepting):
    extras = sbatch_parameters(
        ["mem=64G", "--cpus_per_task=8", "exclusive"], partition="gpu", gres="gpu:1", time=None
    )
    handle = accepting.launcher(**extras).submit(accepting.job, [])
    given = directives(accepting)
    assert {"partition=gpu", "gres=gpu:1", "mem=64G", "cpus-per-task=8", "exclusive"} <= set(given)
    assert {f"job-name={NAME}", "no-requeue"} <= set(given)
    assert not [line for line in given if line.startswith(("time", "wckey"))]
    assert handle["job_id"] == "7"
    assert list(Path(handle["folder"]).glob("7_submitted.pkl"))


@needs_submitit
def test_the_time_limit_goes_to_slurm_in_slurms_own_words(accepting):
    parameters = sbatch_parameters(["requeue"], time="1-12:00:00")
    accepting.launcher(**parameters).submit(accepting.job, [])
    assert "time=1-12:00:00" in directives(accepting)
    assert "requeue" in directives(accepting) and "no-requeue" not in directives(accepting)


@needs_submitit
def test_a_job_that_is_submitted_from_within_a_job_takes_nothing_over_from_it(accepting, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    accepting.launcher().submit(accepting.job, [])
    seen = (accepting.folder / "sbatch.env").read_text()
    assert "SLURM_CONF=1" in seen and "SLURM_JOB_ID" not in seen and "SLURM_MEM" not in seen
    assert os.environ["SLURM_MEM_PER_NODE"] == "1"


@needs_submitit
def test_variables_that_overrule_the_jobs_own_settings_are_hidden_and_others_are_not(accepting, monkeypatch):
    hidden = ("PARTITION", "TIMELIMIT", "REQUEUE", "WAIT", "JOB_NAME", "OUTPUT", "EXPORT", "ARRAY_INX")
    for name in (*hidden, "ACCOUNT", "GRES"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    parameters = sbatch_parameters([], partition="gpu", time="60", gres=None)
    accepting.launcher(**parameters).submit(accepting.job, [])
    seen = (accepting.folder / "sbatch.env").read_text().splitlines()
    assert sorted(line for line in seen if line.startswith("SBATCH_")) == [
        "SBATCH_ACCOUNT=1",
        "SBATCH_GRES=1",
    ]
    assert os.environ["SBATCH_PARTITION"] == "1"


@needs_submitit
def test_a_job_submitted_after_the_last_answer_is_not_missed_in_it(accepting):
    launcher = accepting.launcher()
    handle = launcher.submit(accepting.job, [])
    accepting.shows("PENDING", "Priority")
    assert launcher.poll(handle).phase == JobPhase.QUEUED


def refusing(slurm: Slurm, said: str, meanwhile: str = "") -> None:
    pytest.importorskip("submitit")
    slurm.script("sbatch", f'{meanwhile}\necho "sbatch: {said}" >&2; exit 1')


@needs_submitit
@pytest.mark.parametrize(
    "said",
    [
        *("Invalid qos specification", "Requested reservation is invalid", "Job dependency problem"),
        *("Requested node configuration is not available", "Access/permission denied"),
        "Time limit specification required, but not provided",
        "User's group not permitted to use this partition",
    ],
)
def test_a_mistake_in_the_flags_is_told_in_slurms_words_and_no_checkpoints_failure(slurm, said):
    refusing(slurm, f"error: Batch job submission failed: {said}")
    with pytest.raises(UsageError, match=f"Slurm refuses such jobs .*{said}"):
        slurm.launcher().submit(slurm.job, [])


@needs_submitit
@pytest.mark.parametrize(
    "said",
    [
        "unrecognized option '--mme=64G'",
        "option '--gpu=1' is ambiguous\nTry 'sbatch --help' for more information",
        "option '--no-requeue' doesn't allow an argument\nTry 'sbatch --help' for more information",
        "fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.",
        "error: Invalid --exclusive specification",
    ],
)
def test_options_that_sbatch_cannot_read_are_a_mistake(slurm, said):
    refusing(slurm, said)
    with pytest.raises(UsageError, match="Slurm refuses such jobs"):
        slurm.launcher().submit(slurm.job, [])


@pytest.mark.parametrize("said", ["allocation failure: Invalid partition name specified", "Invalid --time"])
def test_flags_are_tried_before_there_is_a_checkpoint(slurm, said, monkeypatch):
    monkeypatch.setenv("SBATCH_TIMELIMIT", "60")
    slurm.script("sbatch", f'echo "{said}" >&2; exit 1')
    launcher = slurm.launcher(**sbatch_parameters(["exclusive"], time="90", partition=None))
    with pytest.raises(UsageError, match=f"Slurm refuses such jobs .*{said}"):
        launcher.check_parameters()
    assert slurm.calls("sbatch") == ["--test-only --time=90 --exclusive --no-requeue --wrap=true"]
    assert "SBATCH_TIMELIMIT" not in (slurm.folder / "sbatch.env").read_text()


@pytest.mark.parametrize(
    "said",
    [
        "allocation failure: Unable to contact slurm controller (connect failure)",
        "allocation failure: Requested node configuration is not available",  # also where nodes are drained
        "allocation failure: Required partition not available (inactive or drain)",
    ],
)
def test_a_cluster_that_does_not_answer_or_cannot_now_keeps_nobody_from_starting(slurm, said):
    slurm.script("sbatch", f'echo "{said}" >&2; exit 1')
    slurm.launcher().check_parameters()


def test_flags_that_slurm_takes_are_taken(slurm):
    slurm.script("sbatch", "echo 'sbatch: Job 7 to start at 2026-01-01T00:00:00 on nodes invalid n1' >&2")
    slurm.launcher().check_parameters()


@needs_submitit
def test_what_slurm_has_taken_before_is_no_mistake_in_the_flags(accepting):
    launcher = accepting.launcher()
    launcher.submit(accepting.job, [])
    refusing(accepting, "Invalid account or account/partition combination specified")
    with pytest.raises(BusyError, match="Invalid account"):
        launcher.submit(accepting.job, [])


@needs_submitit
@pytest.mark.parametrize(
    "said",
    [
        *("QOSMaxSubmitJobPerUserLimit", "AssocGrpSubmitJobsLimit", "Resource temporarily unavailable"),
        "Requested partition configuration not available now",
        *("Socket timed out on send/recv operation", "Invalid authentication credential"),
        *("Slurm temporarily unable to accept job, sleeping and retrying", "AssocGrpCPUMinutesLimit"),
        "Unable to contact slurm controller",
    ],
)
def test_a_refusal_is_waited_for_and_leaves_no_files_and_no_words_of_its_own(slurm, said, capfd):
    refusing(slurm, said)
    launcher = slurm.launcher()
    with pytest.raises(BusyError, match=f"checkpoint-495: not submitted .*{said}"):
        launcher.submit(slurm.job, [])
    assert not Path(slurm.handle["folder"]).exists()
    assert capfd.readouterr() == ("", "")


@needs_submitit
def test_an_sbatch_that_hangs_is_ended_and_waited_for(slurm, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr("eval_sidecar.launchers.slurm.PATIENCE", 0.2)
    slurm.script("sbatch", "exec sleep 60")
    with pytest.raises(BusyError, match="sbatch did not end within"):
        slurm.launcher().submit(slurm.job, [])


@needs_submitit
def test_a_submission_that_the_machine_cannot_start_is_waited_for(accepting):
    (accepting.folder / "logs").write_text("in the way")
    with pytest.raises(BusyError, match="checkpoint-495: not submitted"):
        accepting.launcher().submit(accepting.job, [])


@needs_submitit
def test_nothing_is_submitted_while_the_controller_does_not_answer(accepting):
    accepting.goes_down()
    with pytest.raises(BusyError, match="Unable to contact"):
        accepting.launcher().submit(accepting.job, [])
    assert accepting.calls("sbatch") == []


@needs_submitit
@pytest.mark.parametrize("meanwhile", ["touch down", f"echo '7|PENDING|None|N/A|0:00||{NAME}' >squeue.says"])
def test_a_submission_of_which_nobody_knows_whether_it_arrived_is_settled_later(slurm, meanwhile):
    refusing(slurm, "Socket timed out on send/recv operation", meanwhile)
    handle = slurm.launcher().submit(slurm.job, [])
    assert handle == slurm.launcher().reserve(slurm.job)


def test_there_are_as_many_slots_as_jobs_may_be_in_flight(slurm):
    assert [slurm.launcher().free_slots([{}] * running) for running in range(4)] == [2, 1, 0, 0]


# -- flags and what has to be there ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        *(("job-name=mine", "sets job-name itself"), ("--output=x", "sets output itself")),
        *(
            (name, f"with {name}, sbatch does not submit")
            for name in ("parsable", "test-only", "wrap", "quiet", "help", "usage", "version")
        ),
        *(
            ("array=0-9", "sets array itself"),
            ("=5", "long option"),
            ("p=gpu", "long option"),
            ("", "long option"),
        ),
    ],
)
def test_an_option_of_sbatch_that_cannot_be_given_is_a_usage_error(extra, said):
    with pytest.raises(UsageError, match=said):
        sbatch_parameters([extra])


def test_a_machine_without_slurm_is_told_what_is_missing(slurm, monkeypatch):
    pytest.importorskip("submitit")
    require_slurm()
    (slurm.folder / "srun").unlink()
    monkeypatch.setenv("PATH", str(slurm.folder))
    with pytest.raises(UsageError, match="srun is not on the PATH"):
        require_slurm()


def test_an_installation_without_submitit_is_told_the_extra(slurm, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"run .*pip install .+\[slurm\]"):
        require_slurm()
