"""Evaluations on a real Slurm: one node, started here, stopped in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator

import psutil
import pytest

from slurm_cluster import Cluster
from toolbox import Command, Repository, printed, wait_until

if not os.environ.get("REQUIRE_SLURM"):
    pytest.importorskip("submitit")

#: In one test process, so that one Slurm serves them all (`--dist loadgroup`).
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

FLAGS = ("--launcher", "slurm", "--poll-interval-seconds", "0.2")


@pytest.fixture
def cluster(slurm_cluster: Cluster, repository: Repository) -> Iterator[Cluster]:
    """The cluster with an empty queue, and a repository whose commands use it."""
    repository.extra.update(slurm_cluster.environment)
    yield slurm_cluster
    for process in repository.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
            if "eval_sidecar" in " ".join(process.cmdline()):
                process.kill()
    slurm_cluster.clear()


def watch(repository: Repository, *flags: str) -> Command:
    return repository.run(*FLAGS, *flags)


def failure(repository: Repository, step: int) -> dict[str, object]:
    """The failure of a step that the ledger knows, once it does."""
    return wait_until(lambda: repository.state["failed_steps"].get(str(step)), f"a failure of {step}")


def kill(command: Command) -> None:
    """Kill the sidecar at once, as a machine that restarts does."""
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()


def test_checkpoints_are_evaluated_as_jobs_and_no_more_than_max_jobs_at_a_time(cluster, repository):
    for step in (100, 200, 300):
        repository.checkpoint(step)
    repository.block()
    sidecar = watch(repository, "--max-jobs", "2")
    repository.wait_for_call(100)
    repository.wait_for_call(200)
    wait_until(lambda: str(repository.state).count(": RUNNING on") == 2, "both being seen to run")
    assert len(cluster.jobs()) == 2
    repository.release()
    repository.wait_for_result(100, 200, 300)
    assert sorted(repository.calls) == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    assert repository.seen_by_script(100)["CUDA_LIST"] == "0"
    assert "SLURM_JOB_ID" in repository.seen_by_script(100)
    log = repository.manager / "evaluations" / repository.model / "checkpoint-100.log"
    assert printed(log) == f"evaluating checkpoint-100 of {repository.model_dir}\n"
    sidecar.signal(signal.SIGTERM)
    assert sidecar.wait() == 0


def test_a_sidecar_that_was_killed_is_followed_by_one_that_submits_nothing_again(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    first = watch(repository)
    repository.wait_for_call(100)
    kill(first)
    watch(repository)
    repository.release()
    repository.wait_for_result(100)
    assert repository.calls == ["checkpoint-100"]


def test_a_sidecar_killed_before_sbatch_has_returned_evaluates_the_checkpoint_once(cluster, repository):
    repository.checkpoint(100)
    real = shutil.which("sbatch")
    # Only where the sidecar submits: through `timeout`, unlike its question at the start.
    above = "[ $(ps -o comm= -p $PPID) = timeout ] && kill -9 $(ps -o ppid= -p $PPID)"
    repository.add_python("sbatch", f'{real} "$@"; {above} || :')
    first = watch(repository)
    cluster.wait_for("RUNNING")
    assert first.wait() != 0
    (repository.home / "bin/sbatch").unlink()
    assert repository.once(*FLAGS).returncode == 0
    assert repository.calls == ["checkpoint-100"]
    assert not cluster.jobs(), "the job that would have waited in vain is ended"


def test_a_stop_leaves_jobs_to_the_next_start_and_says_so(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    repository.start(*FLAGS)
    repository.wait_for_call(100)
    job = cluster.wait_for("RUNNING")
    done = repository.sidecar("stop", "--instance", "cb64")
    assert f"checkpoint-100: left to the next start: Slurm job {job}: RUNNING" in done.stdout
    shown = repository.status()["models"][0]["running"][0]
    assert shown["job"]["job_id"] == str(job)
    assert f"Slurm job {job}: RUNNING" in shown["state"]
    assert f"Slurm job {job}: RUNNING" in repository.sidecar("status", "--instance", "cb64").stdout
    repository.release()
    assert repository.once(*FLAGS).returncode == 0
    assert repository.calls == ["checkpoint-100"]


def test_a_start_with_the_local_launcher_collects_the_job_too(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    first = watch(repository)
    repository.wait_for_call(100)
    kill(first)
    repository.run("--poll-interval-seconds", "0.2")
    repository.release()
    repository.wait_for_result(100)
    assert repository.calls == ["checkpoint-100"]


def test_a_job_that_waits_shows_slurms_reason_and_one_cancelled_by_hand_stays_so(cluster, repository):
    repository.checkpoint(100)
    watch(repository, "--slurm-extra", "begin=now+1hour")
    job = cluster.wait_for("PENDING")
    explain = ("explain", "--sft-root", str(repository.model_dir), "100")
    said = f"Slurm job {job}: PENDING (BeginTime)"
    wait_until(lambda: said in repository.sidecar(*explain).stdout, said)
    cluster.ask("scancel", str(job))
    failed = failure(repository, 100)
    assert f"Slurm job {job}: CANCELLED" in failed["error"]
    assert failed["final"] and failed["attempts"] == 1
    assert f"Slurm job {job}: CANCELLED" in repository.sidecar(*explain).stdout
    assert not cluster.jobs(), "it is not submitted again"


def test_a_job_cancelled_while_it_runs_is_taken_up_by_retry(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    watch(repository)
    repository.wait_for_call(100)
    cluster.ask("scancel", str(cluster.wait_for("RUNNING")))
    assert failure(repository, 100)["final"]
    repository.release()
    repository.sidecar("retry", "--sft-root", str(repository.model_dir))
    repository.wait_for_result(100)


def test_a_script_that_fails_is_tried_as_often_as_max_attempts_allows(cluster, repository):
    repository.checkpoint(100)
    repository.fail(100, "CUDA out of memory")
    done = repository.once(*FLAGS)
    assert done.returncode == 1
    assert "the evaluation script ended with exit code 7: CUDA out of memory" in done.stderr
    assert repository.calls == ["checkpoint-100"] * 2
    assert failure(repository, 100)["attempts"] == 2


def test_a_preempted_job_is_submitted_again_and_costs_no_attempt(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    watch(repository)
    repository.wait_for_call(100)
    cluster.ask("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    repository.wait_for_call(100, times=2)
    entry = repository.state["checkpoints"]["100"]
    assert len(entry["evictions"]) == 1 and "PREEMPTED" in entry["evictions"][0]
    assert repository.state["failed_steps"] == {}
    repository.release()
    repository.wait_for_result(100)


@pytest.mark.parametrize("extra", ["partition=nosuch", "gpu=1", "reservation=nosuch"])
def test_a_mistake_in_the_flags_ends_the_program_before_there_is_a_checkpoint(cluster, repository, extra):
    repository.model_dir.mkdir(parents=True, exist_ok=True)
    sidecar = watch(repository, "--slurm-extra", extra)
    assert sidecar.wait() == 2
    (line,) = sidecar.errors.splitlines()
    assert line.startswith("eval-sidecar: Slurm refuses such jobs")


def test_a_mistake_in_the_flags_costs_no_attempt(cluster, repository):
    repository.checkpoint(100)
    assert repository.once(*FLAGS, "--slurm-partition", "nosuch").returncode == 2
    assert repository.once(*FLAGS).returncode == 0
    assert repository.calls == ["checkpoint-100"]


def test_a_partition_that_takes_no_jobs_now_is_waited_for(cluster, repository):
    repository.checkpoint(100)
    cluster.ask("scontrol", "update", "partitionname=main", "state=INACTIVE")
    try:
        sidecar = watch(repository)
        wait_until(lambda: "will retry" in sidecar.output, "the refusal being told")
        assert "not submitted" in repository.state["busy"]
        explain = ("explain", "--sft-root", str(repository.model_dir), "100")
        said = "not started  checkpoint-100: not submitted"
        wait_until(lambda: said in repository.sidecar(*explain).stdout, said)  # but for moments of trying
    finally:
        cluster.ask("scontrol", "update", "partitionname=main", "state=UP")
    repository.wait_for_result(100)
    assert sidecar.output.count("will retry") == 1
    assert repository.state["failed_steps"] == {}


def test_variables_of_the_users_own_hide_no_job_and_overrule_no_flag(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    own = {"SQUEUE_STATES": "PENDING", "SBATCH_JOB_NAME": "mine", "SBATCH_WAIT": "1"}
    repository.extra.update(own, SBATCH_PARTITION="urgent")
    watch(repository, "--slurm-partition", "main")
    repository.wait_for_call(100)
    wait_until(lambda: ": RUNNING on" in str(repository.state), "the job being seen to run")
    repository.release()
    repository.wait_for_result(100)
    assert repository.seen_by_script(100)["SLURM_JOB_PARTITION"] == "main"


def test_a_time_out_is_named_and_uses_an_attempt(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    watch(repository, "--slurm-time", "10")
    repository.wait_for_call(100)
    job = cluster.wait_for("RUNNING")
    # The controller looks at time limits every 30 s from its start on: hence this test's place in the file.
    cluster.ask("scontrol", "update", f"jobid={job}", "EndTime=now+1")
    failed = failure(repository, 100)
    assert f"Slurm job {job}: TIMEOUT" in failed["error"] and "--slurm-time" in failed["error"]
    assert failed["attempts"] == 1 and not failed.get("final")
    repository.release()
    repository.wait_for_result(100)
    assert repository.calls == ["checkpoint-100"] * 2


def test_what_the_sidecar_ends_itself_is_a_time_out_and_by_nobodys_hand(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    watch(repository, "--eval-timeout-seconds", "2")
    cluster.wait_for("RUNNING")
    assert "--eval-timeout-seconds" in failure(repository, 100)["error"]


def test_a_user_who_cannot_be_looked_up_for_a_moment_loses_no_job(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    blind = "[ ! -e control/blind ] || { echo 'squeue: error: Invalid user: 4242' >&2; exit 0; }"
    repository.add_python("squeue", f'{blind}; exec {shutil.which("squeue")} "$@"')
    sidecar = watch(repository)
    repository.wait_for_call(100)
    (repository.control / "blind").touch()
    wait_until(lambda: "Invalid user: 4242" in str(repository.state), "the sidecar noticing")
    (repository.control / "blind").unlink()
    wait_until(lambda: ": RUNNING on" in str(repository.state), "the job being seen again")
    repository.release()
    repository.wait_for_result(100)
    assert repository.calls == ["checkpoint-100"]
    assert "failed" not in sidecar.output


def test_a_controller_that_restarts_ends_nothing(cluster, repository):
    repository.checkpoint(100)
    repository.block()
    sidecar = watch(repository)
    repository.wait_for_call(100)
    cluster.stop_controller()
    try:
        wait_until(lambda: "squeue does not answer" in sidecar.output, "the sidecar noticing")
        repository.checkpoint(200)
    finally:
        cluster.start_controller()
    repository.release()
    repository.wait_for_result(100, 200)
    assert repository.calls == ["checkpoint-100", "checkpoint-200"]
    assert "failed" not in sidecar.output
