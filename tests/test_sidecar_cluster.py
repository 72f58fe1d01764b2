"""Evaluations on a cluster: jobs that wait, that are taken away, that somebody cancels, that outlive us."""

from __future__ import annotations

import json

import pytest

from eval_sidecar.errors import UsageError
from watching import METRICS, World


@pytest.fixture
def world(tmp_path) -> World:
    """One checkpoint, and its evaluation under way."""
    world = World(tmp_path, time_limit=600.0)
    world.write(495)
    world.tick()
    return world


# -- waiting for a machine -------------------------------------------------------------------------------


def test_the_time_in_the_queue_is_not_the_evaluations(world):
    world.launcher.queue(495)
    world.tick(after=10_000)
    world.launcher.begin(495, world.now)
    world.tick(after=599)
    assert world.launcher.cancelled == []
    world.tick(after=2)
    assert world.launcher.cancelled == [world.launcher.jobs[0].token]
    assert "--eval-timeout-seconds" in world.entry(495).failure.error


def test_a_restart_counts_from_when_the_job_began_and_not_from_its_submission(world):
    world.launcher.queue(495)
    world.tick(after=10_000)
    world.launcher.begin(495, world.now)
    world.tick()
    world.restart()
    world.tick(after=500)
    assert world.launcher.cancelled == []


def test_time_for_which_a_job_was_suspended_is_not_the_evaluations(world):
    world.launcher.begin(495, world.now)
    world.tick()
    world.launcher.queue(495, "SUSPENDED")
    world.tick(after=10_000)
    world.launcher.begin(495, world.now - 10_000, used=599)
    world.tick()
    assert world.launcher.cancelled == []
    world.launcher.begin(495, world.now - 10_000, used=601)
    world.tick()
    assert world.launcher.cancelled == [world.launcher.jobs[0].token]


def test_where_a_job_stands_is_in_the_ledger_for_others_to_see(world):
    world.launcher.queue(495, "Slurm job 7: PENDING (Priority)")
    world.tick()
    saved = json.loads(world.state_file.read_text())["checkpoints"]["495"]["running"]
    assert saved["state"] == "Slurm job 7: PENDING (Priority)"
    running = world.store.ledger.entry(495).running
    assert running.state == "Slurm job 7: PENDING (Priority)"


def test_a_job_that_stands_where_it_stood_says_and_writes_nothing(world, caplog):
    caplog.set_level("INFO", "eval_sidecar")
    world.launcher.queue(495)
    world.tick()
    assert "checkpoint-495: PENDING (Priority)" in caplog.messages
    caplog.clear()
    before = world.state_file.stat()
    world.tick(after=60)
    assert world.state_file.stat().st_ino == before.st_ino
    assert caplog.messages == []


# -- taken away by the machine ---------------------------------------------------------------------------


def test_an_eviction_costs_no_attempt_and_its_reason_is_kept(world):
    world.launcher.evict(495)
    assert world.tick() == 1
    entry = world.entry(495)
    assert (entry.attempts, entry.failure) == (0, None)
    (reason,) = entry.evictions
    assert reason.endswith("job 7: NODE_FAIL")


def test_evictions_are_remembered_by_the_next_sidecar(world):
    world.launcher.evict(495)
    world.tick()
    world.restart()
    assert len(world.entry(495).evictions) == 1


def test_evictions_are_bounded(tmp_path):
    world = World(tmp_path, max_evictions=3)
    world.write(495)
    world.tick()
    while not world.entry(495).has_failed:
        world.launcher.evict(495)
        world.tick()
        world.tick(after=600)
    assert len(world.launcher.jobs) == 3 + world.config.max_attempts
    assert "NODE_FAIL, after 3 earlier evictions" in world.entry(495).failure.error


def test_each_eviction_but_the_first_is_followed_by_a_longer_pause(tmp_path):
    world = World(tmp_path, slots=2)
    world.write(495)
    world.tick()
    pauses = []
    for _ in range(8):
        assert world.launcher.running() == [495]
        world.launcher.evict(495)
        began = world.now
        world.tick()
        while world.launcher.running() == []:
            assert not world.sidecar.is_idle, "a single pass waits for it"
            world.tick(after=10)
        pauses.append(world.now - began)
    assert pauses == pytest.approx([0, 10, 20, 40, 80, 160, 320, 600], abs=0.01)


@pytest.fixture
def paused(world) -> World:
    """A checkpoint that was evicted twice."""
    for started in (1, 0):
        world.launcher.evict(495)
        assert world.tick() == started
    return world


def test_while_one_checkpoint_waits_after_evictions_others_are_evaluated(paused):
    world = paused
    world.write(500)
    assert world.tick() == 1
    assert world.launcher.running() == [500]


def test_retry_ends_the_pause_after_evictions(paused):
    paused.sidecar.clear_failures(None)
    assert paused.tick() == 1


@pytest.mark.parametrize("how", ["a result", "retry"])
def test_evictions_are_forgotten_after(world, how):
    world.launcher.evict(495)
    world.tick()
    if how == "retry":
        world.sidecar.clear_failures([495])
    else:
        world.finish(495)
        world.tick()
    assert world.entry(495).evictions == ()


def test_numbers_of_an_evicted_evaluation_are_not_taken_for_a_result(world):
    world.report(495)
    world.launcher.evict(495)
    world.tick()
    assert world.entry(495).result is None
    assert world.launcher.running() == [495]


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_cancelled_since_it_seemed_gone_is_evicted_and_was_cancelled_by_nobody(world, restarts):
    world.launcher.slow = True
    world.launcher.evict(495)
    world.launcher.reappears = True
    assert world.tick() == 0
    assert world.launcher.cancelled != []
    if restarts:
        world.restart()
    world.launcher.cancel_by_hand(495)
    assert world.tick() == 1
    entry = world.entry(495)
    assert (entry.attempts, entry.failure) == (0, None)
    (reason,) = entry.evictions
    assert reason.endswith("job 7: NODE_FAIL")


def test_what_the_sidecar_cancels_is_in_the_ledger_first(world):
    world.launcher.evict(495)
    world.launcher.stuck = "killed in this moment"
    world.tick()
    world.restart()
    world.launcher.stuck = None
    world.launcher.cancel_by_hand(495)
    assert world.tick() == 1
    assert world.entry(495).failure is None


# -- ended for its own doing, or by somebody -------------------------------------------------------------


def test_a_time_out_uses_an_attempt_and_is_told_in_the_launchers_words(world):
    world.launcher.run_out_of_time(495)
    world.tick()
    assert world.entry(495).attempts == 1
    assert world.entry(495).failure.error == "job 7: TIMEOUT"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_job_that_is_slow_to_end_after_its_time_limit_has_timed_out_and_was_cancelled_by_nobody(
    world, restarts
):
    world.launcher.slow = True
    world.tick(after=601)
    if restarts:
        world.restart()
    assert world.tick(after=60) == 0
    assert world.entry(495).failure is None, "it still ends"
    world.launcher.cancel_by_hand(495)
    assert world.tick() == 1
    failure = world.entry(495).failure
    assert "--eval-timeout-seconds" in failure.error and not failure.final
    assert world.entry(495).attempts == 1


def test_a_success_in_the_moment_of_its_time_limit_is_a_success(world):
    world.launcher.slow = True
    world.tick(after=601)
    world.finish(495)
    world.tick()
    assert world.entry(495).result is not None


def test_what_somebody_cancelled_is_not_submitted_again_before_retry(world):
    world.launcher.cancel_by_hand(495)
    assert world.tick() == 0
    assert world.entry(495).has_failed
    assert "job 7: CANCELLED" in world.entry(495).failure.error
    world.restart()
    assert world.tick() == 0
    world.sidecar.clear_failures([495])
    assert world.tick() == 1


# -- a launcher that cannot now --------------------------------------------------------------------------


def test_a_launcher_that_takes_no_job_now_leaves_checkpoints_as_never_tried(tmp_path):
    world = World(tmp_path, slots=2)
    world.launcher.busy = "checkpoint-10: no more jobs now"
    for step in (10, 20):
        world.write(step)
    assert world.tick() == 0
    assert (world.entry(10).running, world.entry(10).attempts) == (None, 0)
    assert not world.sidecar.is_idle, "a single pass waits for it"
    world.launcher.busy = None
    assert world.tick() == 2


def test_why_no_job_is_taken_is_said_once_and_shown_for_as_long_as_it_lasts(tmp_path, caplog):
    caplog.set_level("INFO", "eval_sidecar")
    world = World(tmp_path)
    world.write(10)
    for _ in range(2):  # outages
        caplog.clear()
        world.launcher.busy = "checkpoint-10: Slurm refuses the job (partition is drained)"
        for _ in range(3):
            world.tick(after=60)
        world.restart()
        assert world.store.ledger.busy == world.launcher.busy
        assert caplog.messages.count(world.launcher.busy) == 1
        world.launcher.busy = None
        world.tick()
        assert world.store.ledger.busy is None
        world.fail(10)
        world.tick()
        world.fail(10)
        world.tick()
        world.sidecar.clear_failures(None)


def test_a_launcher_that_will_never_take_a_job_ends_the_program_and_leaves_the_checkpoint_as_it_was(tmp_path):
    world = World(tmp_path)
    world.write(10)
    world.launcher.mistake = "Slurm refuses such jobs (Invalid partition)"
    with pytest.raises(UsageError, match="Invalid partition"):
        world.tick()
    world.restart()
    assert (world.entry(10).running, world.entry(10).attempts) == (None, 0)


def test_an_evaluation_that_cannot_be_ended_is_not_started_a_second_time(world):
    world.launcher.stuck = "the controller does not answer"
    assert world.tick(after=601) == 0
    assert world.entry(495).running is not None
    world.launcher.stuck = None
    assert world.tick() == 1
    assert world.entry(495).attempts == 1


# -- a sidecar that ends ---------------------------------------------------------------------------------


def test_jobs_that_go_on_alone_are_collected_by_the_next_sidecar(world):
    world.launcher.goes_on = True
    world.sidecar.leave()
    assert world.launcher.cancelled == []
    assert world.entry(495).running is not None
    world.finish(495)
    world.restart()
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS
    assert world.launcher.steps == [495]
