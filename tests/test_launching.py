"""Which launcher the flags choose, and which one a job from before belongs to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval_sidecar.cli.flags import LauncherFlags
from eval_sidecar.cli.launching import choose_launcher, keeps_evaluator, launcher_of_old_jobs
from eval_sidecar.errors import UsageError
from eval_sidecar.installation import own_evaluation_script
from eval_sidecar.launchers.slurm import SlurmLauncher
from eval_sidecar.types import Job, JobPhase

FLAGS = LauncherFlags(cuda_list="0 1", gpus_per_eval=1)
POLL_SECONDS = 60.0
SLURM_JOB = {"launcher": "slurm", "name": "eval-495.t", "folder": "/nowhere", "job_id": "7"}


@pytest.fixture
def on_a_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval_sidecar.cli.launching.require_slurm", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")


def test_evaluations_run_on_this_machine_unless_asked_otherwise():
    assert choose_launcher(FLAGS, POLL_SECONDS).free_slots([]) == 2


@pytest.mark.parametrize(("given", "slots"), [(None, 4), (7, 7)])
def test_slurm_jobs_are_counted_by_max_jobs_and_not_by_gpus(on_a_login_node, given, slots):
    launcher = choose_launcher(replace(FLAGS, launcher="slurm", max_jobs=given), POLL_SECONDS)
    assert launcher.free_slots([]) == slots


def test_jobs_of_the_other_launcher_take_no_slots(on_a_login_node):
    assert choose_launcher(FLAGS, POLL_SECONDS).free_slots([SLURM_JOB]) == 2
    slurm = choose_launcher(replace(FLAGS, launcher="slurm"), POLL_SECONDS)
    assert slurm.free_slots([{"pid": 1, "devices": "0"}]) == 4


def test_a_job_of_slurm_is_asked_after_in_slurm_whatever_the_flags(on_a_login_node):
    assert choose_launcher(FLAGS, POLL_SECONDS).poll(SLURM_JOB).phase == JobPhase.QUEUED, (
        "squeue is not there, so nobody knows"
    )
    assert launcher_of_old_jobs().detach(SLURM_JOB) is True


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_a_job_reserved_by_one_launcher_is_known_as_its_own(on_a_login_node, tmp_path: Path, kind: str):
    job = Job(495, "t0", ("true",), {}, tmp_path, tmp_path / "x.log")
    reserved = choose_launcher(replace(FLAGS, launcher=kind), POLL_SECONDS).reserve(job)
    expected = {"local": JobPhase.LOST, "slurm": JobPhase.QUEUED}[kind]
    assert launcher_of_old_jobs().poll(reserved).phase == expected


@pytest.mark.parametrize(("poll", "pause"), [(60.0, 10.0), (2.0, 2.0)])
def test_the_controller_is_asked_once_a_poll_and_files_of_jobs_more_often(
    on_a_login_node, monkeypatch, poll, pause
):
    asked = []
    make = SlurmLauncher
    monkeypatch.setattr(
        "eval_sidecar.cli.launching.SlurmLauncher",
        lambda *given, ask_every: asked.append(ask_every) or make(*given, ask_every=ask_every),
    )
    chosen = choose_launcher(replace(FLAGS, launcher="slurm"), poll)
    assert (asked, chosen.pause) == ([poll], pause)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("slurm_partition", "gpu"), ("slurm_gres", "gpu:1"), ("slurm_time", "90")),
        *(("slurm_extra", ("mem=1G",)), ("max_jobs", 2)),
    ],
)
def test_a_flag_of_slurms_without_slurm_is_a_usage_error_that_names_it(flag, value):
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')} .*--launcher slurm"):
        choose_launcher(replace(FLAGS, **{flag: value}), POLL_SECONDS)


def test_processes_that_stay_warm_do_not_go_with_jobs(on_a_login_node):
    with pytest.raises(UsageError, match="--warm"):
        choose_launcher(replace(FLAGS, launcher="slurm", warm=True), POLL_SECONDS)


def test_the_evaluator_is_kept_by_default_if_it_is_ours_whatever_its_name(tmp_path: Path):
    own = own_evaluation_script()
    copy, link, theirs = tmp_path / "mine.sh", tmp_path / "link.sh", tmp_path / own.name
    copy.write_bytes(own.read_bytes())
    link.symlink_to(own)
    theirs.write_text("python evaluate.py\n")
    kept = [keeps_evaluator(FLAGS, script) for script in (own, copy, link, theirs, tmp_path / "none.sh")]
    assert kept == [True, True, True, False, False]


@pytest.mark.parametrize("given", [True, False])
def test_warm_as_given_holds_for_every_script(tmp_path: Path, given: bool):
    flags = replace(FLAGS, warm=given)
    assert [keeps_evaluator(flags, script) for script in (own_evaluation_script(), tmp_path)] == [given] * 2


def test_jobs_of_slurm_keep_nothing_by_default(on_a_login_node):
    flags = replace(FLAGS, launcher="slurm")
    choose_launcher(flags, POLL_SECONDS)
    assert not keeps_evaluator(flags, own_evaluation_script())
