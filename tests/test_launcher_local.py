"""Evaluations as real processes: exit codes that outlive the sidecar, and nothing left after a cancel."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from eval_sidecar.errors import LaunchError, UsageError
from eval_sidecar.launchers.base import JobState
from eval_sidecar.launchers.local import LocalLauncher
from eval_sidecar.system.gpus import split_devices
from eval_sidecar.system.process import end_family, family, wait_for_end
from eval_sidecar.types import Handle, Job, JobPhase
from toolbox import OUR_MARK, printed

MARKER = "EVAL_SIDECAR_JOB"


@pytest.fixture
def job(tmp_path) -> Iterator[Job]:
    """A job that ends at once; whatever a test starts under its token is killed in the end."""
    token = uuid.uuid4().hex
    log = tmp_path / "logs" / "checkpoint-495.log"
    yield Job(step=495, token=token, argv=("true",), env={}, cwd=tmp_path, log=log)
    end_family(None, (MARKER, token), 0.0)


@pytest.fixture
def launcher() -> LocalLauncher:
    return LocalLauncher(["0"], grace_seconds=30.0)


def bash(job: Job, script: str) -> Job:
    return replace(job, argv=("bash", "-c", script))


def waiting(job: Job, before: str = "") -> Job:
    """A job that tells through a pipe that it is up (`wait_until_up`), and stays until it is ended."""
    os.mkfifo(job.cwd / "up")
    return bash(job, f"{before} echo up > up; while :; do read -r line < hold || exit 9; done")


def wait_until_up(job: Job) -> None:
    os.mkfifo(job.cwd / "hold") if not (job.cwd / "hold").exists() else None
    assert (job.cwd / "up").read_text() == "up\n"


def wait_until_ended(handle: Handle) -> None:
    """Wait until the job's process has ended, without collecting it: that is the launcher's."""
    assert wait_for_end([psutil.Process(handle["pid"])], 60)


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# -- starting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 3, 137])
def test_the_exit_code_of_the_command_is_reported(launcher, job, code):
    handle = launcher.submit(bash(job, f"exit {code}"), [])
    wait_until_ended(handle)
    assert launcher.poll(handle) == JobState(JobPhase.ENDED, code)


def test_a_command_that_a_signal_ended_is_reported_with_128_and_the_signal(launcher, job):
    handle = launcher.submit(bash(job, "kill -9 $$"), [])
    wait_until_ended(handle)
    assert launcher.poll(handle) == JobState(JobPhase.ENDED, 128 + signal.SIGKILL)


def test_output_and_errors_go_to_the_jobs_log_after_what_is_there(launcher, job):
    job.log.parent.mkdir(parents=True)
    job.log.write_text("first attempt\n")
    handle = launcher.submit(bash(job, "echo out; echo error >&2"), [])
    wait_until_ended(handle)
    assert printed(job.log) == "first attempt\nout\nerror\n"


def test_the_command_runs_where_and_with_what_the_job_says(launcher, job, monkeypatch):
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("CATEGORY", "overruled")
    script = 'echo "$PWD $KEPT $CATEGORY $CUDA_LIST"; ! read -r line'
    handle = launcher.submit(replace(bash(job, script), env={"CATEGORY": "Toys", "CUDA_LIST": "9"}), [])
    wait_until_ended(handle)
    assert printed(job.log) == f"{job.cwd} kept Toys 0\n"
    assert launcher.poll(handle) == JobState(JobPhase.ENDED, 0), "its input is empty, not the terminal"


def test_arguments_reach_the_command_as_they_are(launcher, job):
    arguments = ("a b", "$HOME", "'quoted'", "", "*")
    handle = launcher.submit(replace(job, argv=("printf", "<%s>", *arguments)), [])
    wait_until_ended(handle)
    assert printed(job.log) == "".join(f"<{argument}>" for argument in arguments) + "\n"


def test_the_log_says_when_what_and_with_which_settings_and_gpu_each_attempt_began_and_how_it_ended(
    launcher, job, monkeypatch
):
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    job = replace(bash(job, "printf 'no line end'; kill -9 $$"), env={"CKPT_LIST": "/m/c 1", "SEED": "4 2"})
    for _ in range(2):
        wait_until_ended(launcher.submit(job, []))
    began, command, checkpoint, settings, said, ended = job.log.read_text().splitlines()[:6]
    assert re.fullmatch(rf"{OUR_MARK}began \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \+0800 on \S+, GPU 0", began)
    assert "command: bash -c" in command and f"(in {job.cwd})" in command
    assert checkpoint.endswith(": /m/c 1") and settings.endswith(": SEED='4 2'")
    assert said == "no line end"
    assert re.fullmatch(rf"{OUR_MARK}ended with exit code 137 \(SIGKILL\) after \d+ s, .*\+0800", ended)
    assert len(job.log.read_text().splitlines()) == 12


def test_what_the_log_says_of_settings_shows_no_key(launcher, job, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    wait_until_ended(launcher.submit(replace(job, env={"NOTE": "0123456789abcdef"}), []))
    assert "NOTE=" in job.log.read_text()
    assert "0123456789abcdef" not in job.log.read_text()


def test_a_command_that_is_not_there_ends_with_its_reason_in_the_log(launcher, job):
    handle = launcher.submit(replace(job, argv=("/no/such/script",)), [])
    wait_until_ended(handle)
    assert launcher.poll(handle) == JobState(JobPhase.ENDED, 127)
    assert "/no/such/script" in job.log.read_text()


@pytest.mark.parametrize("broken", ["cwd", "log"])
def test_a_job_that_cannot_be_started_is_an_error_that_names_the_checkpoint(launcher, job, tmp_path, broken):
    (tmp_path / "file").write_text("")
    path = {"cwd": tmp_path / "nowhere", "log": tmp_path / "file" / "x.log"}[broken]
    with pytest.raises(LaunchError, match="checkpoint-495: the evaluation could not be started"):
        launcher.submit(replace(job, **{broken: path}), [])


def test_a_second_attempt_does_not_inherit_the_first_ones_exit_code(launcher, job):
    wait_until_ended(launcher.submit(bash(job, "exit 3"), []))
    up = waiting(job)
    handle = launcher.submit(up, [])
    assert launcher.poll(handle) == JobState(JobPhase.RUNNING)
    wait_until_up(up)
    launcher.cancel(handle)


# -- after a restart -------------------------------------------------------------------------------------


def test_another_launcher_finds_a_running_job_by_its_handle_from_json(launcher, job):
    up = waiting(job)
    handle = json.loads(json.dumps(launcher.submit(up, [])))
    wait_until_up(up)
    assert LocalLauncher(["0"]).poll(handle) == JobState(JobPhase.RUNNING)
    launcher.cancel(handle)


def test_another_launcher_learns_the_exit_code_of_a_job_that_is_not_its_child(launcher, job):
    handle = launcher.submit(bash(job, "exit 3"), [])
    wait_until_ended(handle)
    assert LocalLauncher(["0"]).poll(handle) == JobState(JobPhase.ENDED, 3)


def test_another_launcher_ends_a_job_that_is_not_its_child(launcher, job):
    up = waiting(job)
    handle = launcher.submit(up, [])
    wait_until_up(up)
    LocalLauncher(["0"], grace_seconds=30.0).cancel(handle)
    assert family(None, (MARKER, job.token)) == []


def test_a_job_of_which_only_the_token_is_known_is_lost_and_can_be_cancelled(launcher, job):
    up = waiting(job)
    launcher.submit(up, [])
    wait_until_up(up)
    handle = {"token": job.token}
    assert LocalLauncher(["0"]).poll(handle) == JobState(JobPhase.LOST, reason="its start was interrupted")
    LocalLauncher(["0"], grace_seconds=30.0).cancel(handle)
    assert family(None, (MARKER, job.token)) == []


def test_a_job_whose_process_is_gone_without_an_exit_code_is_lost(launcher, job):
    handle = launcher.submit(job, [])
    wait_until_ended(handle)
    Path(handle["exit_file"]).unlink()
    assert LocalLauncher(["0"]).poll(handle).phase == JobPhase.LOST


def test_a_process_that_got_the_jobs_pid_later_is_not_the_job(launcher, job):
    handle = {**launcher.submit(job, []), "pid": os.getpid()}
    handle["exit_file"] += "-never-written"
    assert LocalLauncher(["0"]).poll(handle).phase == JobPhase.LOST


# -- on another machine ----------------------------------------------------------------------------------


def on_another_machine(handle: Handle) -> Handle:
    """The handle as if the job had been started there, and this machine had read it from a shared disk."""
    return {**handle, "host": "another", "boot": "another boot"}


def test_a_job_of_another_machine_is_left_to_that_and_takes_nothing_here(launcher, job):
    up = waiting(job)
    handle = launcher.submit(up, [])
    wait_until_up(up)
    there = on_another_machine(handle)
    state = LocalLauncher(["0"]).poll(there)
    assert state.phase == JobPhase.ELSEWHERE
    assert "runs on another, or did" in state.reason and "eval-sidecar retry" in state.reason
    with pytest.raises(LaunchError, match="cannot be ended from here"):
        launcher.cancel(there)
    assert launcher.detach(there) is True
    assert launcher.free_slots([there]) == 1
    assert launcher.poll(handle) == JobState(JobPhase.RUNNING), (
        "a process here that has the same pid is not the job"
    )
    launcher.cancel(handle)


def test_a_job_of_another_machine_has_ended_where_its_exit_file_is(launcher, job):
    handle = launcher.submit(bash(job, "exit 3"), [])
    wait_until_ended(handle)
    there = on_another_machine(handle)
    assert launcher.poll(there) == JobState(JobPhase.ENDED, 3)
    assert launcher.cancel(there) is True


def test_a_machine_under_another_name_is_the_same_until_it_boots(launcher, job):
    if launcher.reserve(job)["boot"] is None:
        pytest.skip("this system does not tell one boot from another")
    up = waiting(job)
    handle = {**launcher.submit(up, []), "host": "another"}
    wait_until_up(up)
    assert launcher.poll(handle) == JobState(JobPhase.RUNNING)
    launcher.cancel(handle)


def test_the_exit_code_of_an_attempt_that_was_given_up_judges_no_later_one(launcher, job):
    first = launcher.reserve(job)
    up = waiting(replace(job, token=uuid.uuid4().hex))
    second = launcher.submit(up, [])
    wait_until_up(up)
    Path(first["exit_file"]).write_text("0\n")
    assert launcher.poll(second) == JobState(JobPhase.RUNNING)
    launcher.cancel(second)


def test_exit_files_do_not_pile_up(launcher, job):
    for _ in range(3):
        handle = launcher.submit(replace(job, token=uuid.uuid4().hex), [])
        wait_until_ended(handle)
    assert [str(path) for path in job.log.parent.glob("*.exit")] == [handle["exit_file"]]


# -- ending ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", [psutil.AccessDenied, None], ids=["another user's", "waits for a device"])
def test_a_job_that_goes_on_after_all_signals_is_an_error_that_names_the_process(
    launcher, job, monkeypatch, why
):
    up = waiting(job)
    handle = launcher.submit(up, [])
    wait_until_up(up)
    with monkeypatch.context() as patched:

        def refuse(process: psutil.Process, number: int) -> None:
            if why is not None:
                raise why(process.pid)

        patched.setattr(psutil.Process, "send_signal", refuse)
        patched.setattr("eval_sidecar.system.process.wait_for_end", lambda members, seconds: False)
        with pytest.raises(LaunchError, match=f"pid .*{handle['pid']}.* is still running"):
            launcher.cancel(handle)
    assert launcher.poll(handle) == JobState(JobPhase.RUNNING)
    assert launcher.cancel(handle) is True


@pytest.mark.parametrize("how", ["", "setsid "], ids=["in its group", "in a session of its own"])
def test_a_cancel_ends_grandchildren_wherever_they_went(launcher, job, how):
    up = waiting(job, f"{how}sleep 600 & echo $! > grandchild;")
    handle = launcher.submit(up, [])
    wait_until_up(up)
    grandchild = int((job.cwd / "grandchild").read_text())
    assert not has_ended(grandchild)
    launcher.cancel(handle)
    assert has_ended(grandchild)
    assert not psutil.pid_exists(handle["pid"]), "it is collected, not left as a zombie"


def test_a_cancelled_job_is_never_reported_as_a_success(launcher, job):
    up = waiting(job)
    handle = launcher.submit(up, [])
    wait_until_up(up)
    launcher.cancel(handle)
    state = launcher.poll(handle)
    assert state.phase != JobPhase.RUNNING
    assert state.exit_code != 0


def test_cancelling_twice_is_the_same_as_once(launcher, job):
    handle = launcher.submit(job, [])
    wait_until_ended(handle)
    launcher.cancel(handle)
    launcher.cancel(handle)
    assert launcher.poll(handle) == JobState(JobPhase.ENDED, 0)


def test_a_job_whose_wrapper_was_killed_is_lost_although_its_command_goes_on(launcher, job):
    up = waiting(job, "echo $$ > command;")
    handle = launcher.submit(up, [])
    wait_until_up(up)
    os.kill(handle["pid"], signal.SIGKILL)
    wait_until_ended(handle)
    state = launcher.poll(handle)
    assert (state.phase, state.exit_code) == (JobPhase.LOST, None)
    assert "signal 9" in state.reason
    launcher.cancel(handle)
    assert has_ended(int((job.cwd / "command").read_text()))


# -- devices ---------------------------------------------------------------------------------------------


def test_jobs_side_by_side_get_lists_that_nobody_else_has(job):
    launcher = LocalLauncher(["0 1", "2 3"])
    taken = {"devices": "0 1"}
    assert launcher.submit(job, [taken])["devices"] == "2 3"
    assert launcher.submit(job, [{"devices": "2 3"}])["devices"] == "0 1"


def test_there_are_as_many_slots_as_lists_and_never_less_than_none():
    launcher = LocalLauncher(["0", "1"])
    assert [launcher.free_slots([{}] * running) for running in range(4)] == [2, 1, 0, 0]


@pytest.mark.parametrize(
    ("cuda_list", "gpus_per_eval", "lists"),
    [
        ("0", 0, ("0",)),
        ("0 1 2 3", 0, ("0 1 2 3",)),
        ("0,1, 2", 0, ("0 1 2",)),
        ("0 1 2 3", 1, ("0", "1", "2", "3")),
        ("0 1 2 3", 2, ("0 1", "2 3")),
        ("3 1 2 0", 4, ("3 1 2 0",)),
    ],
)
def test_the_whole_list_goes_to_one_evaluation_unless_it_is_split(cuda_list, gpus_per_eval, lists):
    assert split_devices(cuda_list, gpus_per_eval) == lists


@pytest.mark.parametrize(
    ("cuda_list", "gpus_per_eval", "said"),
    [
        ("", 0, "name a GPU"),
        (" , ", 1, "name a GPU"),
        ("0 1 2", 2, "3 GPUs"),
        ("0", 2, "1 GPUs"),
        ("0", -1, "-1"),
    ],
)
def test_a_list_that_cannot_be_split_is_a_usage_error(cuda_list, gpus_per_eval, said):
    with pytest.raises(UsageError, match=said):
        split_devices(cuda_list, gpus_per_eval)
