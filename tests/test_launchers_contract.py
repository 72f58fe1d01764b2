"""What every launcher keeps to: a process on this machine, and a job on a real Slurm."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import psutil
import pytest

from eval_sidecar.launchers.base import Launcher
from eval_sidecar.launchers.local import LocalLauncher
from eval_sidecar.launchers.slurm import SlurmLauncher
from eval_sidecar.types import Handle, Job, JobPhase
from toolbox import OUR_MARK, printed, wait_until

MakeLauncher = Callable[[], Launcher]


@pytest.fixture(
    params=["local", pytest.param("slurm", marks=[pytest.mark.slurm, pytest.mark.xdist_group("slurm")])]
)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLauncher]:
    """Makes launchers that know nothing of each other, as the sidecars before and after a restart."""
    if request.param == "local":
        yield lambda: LocalLauncher(["3 4"])
        return
    cluster = request.getfixturevalue("slurm_cluster")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield lambda: SlurmLauncher(1, {}, "3 4", ask_every=0.1)
    cluster.clear()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job that writes its pid into ``child``, then waits for a file ``go``, and ends with 3."""
    script = 'echo $$ >child; echo "$0 $KEPT $CUDA_LIST"; while [ ! -e go ]; do sleep 0.05; done; exit 3'
    argv = ("bash", "-c", script, "a 'b' $c *")
    log = tmp_path / "log dir" / "checkpoint-495.log"
    return Job(495, uuid.uuid4().hex, argv, {"KEPT": "x y"}, tmp_path, log)


def wait_until_up(job: Job) -> int:
    path = job.cwd / "child"
    return int(wait_until(lambda: path.exists() and path.read_text().strip(), "the job being up"))


def wait_until_ended(launcher: Launcher, handle: Handle) -> None:
    wait_until(
        lambda: launcher.poll(handle).phase not in (JobPhase.QUEUED, JobPhase.RUNNING), "the job having ended"
    )


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_job_runs_as_it_is_described_and_another_launcher_collects_its_exit_code(make, job):
    job.log.parent.mkdir()
    job.log.write_text("first attempt\n")
    handle = json.loads(json.dumps(make().submit(job, [])))
    wait_until_up(job)
    second = make()
    wait_until(lambda: second.poll(handle).phase == JobPhase.RUNNING, "the job being seen")
    (job.cwd / "go").touch()
    wait_until_ended(second, handle)
    state = second.poll(handle)
    assert (state.phase, state.exit_code) == (JobPhase.ENDED, 3)
    assert printed(job.log) == "first attempt\na 'b' $c * x y 3 4\n"
    ours = [line for line in job.log.read_text().splitlines() if line.startswith(OUR_MARK)]
    assert "began " in ours[0] and "GPU 3 4" in ours[0]
    assert "KEPT='x y'" in ours[-2]
    assert "ended with exit code 3 after" in ours[-1]


def test_a_cancel_leaves_nothing_running_and_may_be_repeated(make, job):
    launcher = make()
    handle = launcher.submit(job, [])
    child = wait_until_up(job)
    wait_until(lambda: launcher.cancel(handle), "the job having ended")
    assert is_gone(child)
    state = launcher.poll(handle)
    assert state.phase != JobPhase.RUNNING and state.exit_code != 0
    assert launcher.cancel(handle)


def test_a_job_of_which_only_the_reservation_was_saved_can_be_ended(make, job):
    reserved = json.loads(json.dumps(make().reserve(job)))
    make().submit(job, [])
    child = wait_until_up(job)
    wait_until(lambda: make().cancel(reserved), "the job having ended")
    assert is_gone(child)


def test_a_job_is_left_running_or_ended_as_the_launcher_says(make, job):
    handle = make().submit(job, [])
    child = wait_until_up(job)
    goes_on = make().detach(handle)
    assert is_gone(child) is not goes_on
