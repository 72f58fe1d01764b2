"""A sidecar that takes over from one that was killed, and evaluations that are forced."""

from __future__ import annotations

import logging
import shutil

import pytest

from eval_sidecar.errors import LaunchError
from eval_sidecar.evaluation.jobs import detach_jobs
from eval_sidecar.ledger.ledger import Running
from eval_sidecar.ledger.status import unfinished, waiting
from eval_sidecar.paths import ResultPaths
from watching import METRICS, MODEL, World


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


# -- restarts --------------------------------------------------------------------------------------------


def test_a_running_evaluation_is_taken_over_and_not_started_twice(world):
    world.write(495)
    world.tick()
    world.restart()
    assert world.tick() == 0
    world.finish(495)
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS
    assert world.launcher.steps == [495]


def test_one_that_ended_while_nobody_watched_is_collected(world):
    world.write(495)
    world.tick()
    world.finish(495)
    world.restart()
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS


def test_one_that_failed_while_nobody_watched_has_used_an_attempt(world):
    world.write(495)
    world.tick()
    world.fail(495, 3)
    world.restart()
    world.tick()
    assert world.entry(495).attempts == 1
    assert world.launcher.steps == [495, 495]


def test_one_that_was_lost_while_nobody_watched_is_started_again_without_counting(world):
    world.write(495)
    world.tick()
    world.launcher.lose(495)
    world.restart()
    assert world.tick() == 1
    assert world.entry(495).attempts == 0
    assert world.launcher.cancelled == [world.launcher.jobs[0].token], "what may be left of it is ended"


def test_one_that_was_lost_under_our_eyes_has_failed(world):
    world.write(495)
    world.tick()
    world.launcher.lose(495)
    world.sidecar.tick(budget=0)
    assert world.entry(495).failure.error == "the job disappeared: no trace of it"
    assert world.launcher.cancelled == [world.launcher.jobs[0].token]


def test_one_whose_start_was_cut_short_is_ended_by_its_token_and_started_again(world):
    world.write(495)
    world.tick(budget=0)
    cut_short = Running({"token": "t0"}, world.now, "x.log", str(world.checkpoint(495)), ())
    world.store.update(lambda ledger: ledger.started(495, cut_short))
    world.restart()
    assert world.tick() == 1
    assert world.launcher.cancelled == ["t0"]
    assert world.entry(495).attempts == 0


def test_the_token_is_on_disk_before_the_job_is_started(world):
    tokens = []
    submit = world.launcher.submit

    def submit_and_look(job, running):
        saved = world.state_file.read_text()
        tokens.append(job.token in saved)
        return submit(job, running)

    world.launcher.submit = submit_and_look
    world.write(495)
    world.tick()
    assert tokens == [True]


def test_an_evaluation_on_another_machine_is_started_again_only_when_it_is_given_up_by_name(world):
    world.write(495)
    world.tick()
    world.launcher.go_elsewhere(495)
    world.restart()
    for steps in (None, [500]):
        world.sidecar.clear_failures(steps)
        assert world.tick(after=100_000) == 0
    assert world.sidecar.is_idle, "a single pass does not wait for it"
    assert not unfinished(world.store.ledger, expects_delivery=False, expects_confirmation=False)
    (line,) = waiting(world.store.ledger)
    assert line == "checkpoint-495: is being evaluated: runs on another, or did"
    world.sidecar.clear_failures([495])
    assert world.tick() == 1
    assert world.entry(495).attempts == 0
    assert world.sidecar.is_running


def test_what_cannot_be_ended_is_left_to_the_next_sidecar(world, caplog):
    world.write(495)
    world.tick()
    world.launcher.stuck = "pid 7 goes on after SIGKILL"
    world.sidecar.leave()
    assert "checkpoint-495: pid 7 goes on after SIGKILL" in caplog.text
    world.launcher.stuck = None
    world.restart()
    assert world.entry(495).running is not None


def test_a_restart_does_not_give_an_evaluation_more_time(tmp_path):
    world = World(tmp_path, time_limit=600.0)
    world.write(495)
    world.tick()
    world.now += 500
    world.restart()
    world.tick(after=50)
    assert world.launcher.cancelled == []
    world.tick(after=51)
    assert world.launcher.cancelled == [world.launcher.jobs[0].token]


def test_a_clock_that_was_set_back_does_not_end_an_evaluation(tmp_path):
    world = World(tmp_path, time_limit=600.0)
    world.write(495)
    world.tick()
    world.now -= 10_000
    world.restart()
    world.tick()
    world.tick(after=600)
    assert world.launcher.cancelled == []


def test_a_pin_outlives_the_sidecar_and_its_state(world):
    world.write(495)
    world.tick(budget=0)
    shutil.rmtree(world.checkpoint(495))
    world.state_file.unlink()
    world.restart()
    assert world.tick() == 1


def test_what_is_rewritten_while_nobody_watched_is_noticed(world):
    world.write(495)
    world.tick()
    world.now += 10
    world.write(495, {"config.json": b'{"changed": true}'})
    world.finish(495)
    world.restart()
    world.tick()
    assert world.entry(495).result is None


# -- forced ----------------------------------------------------------------------------------------------


@pytest.fixture
def done(world) -> World:
    """A world with a result, and a sidecar that is told to evaluate everything again."""
    world.write(495)
    world.evaluate(495)
    world.restart(force=True)
    return world


def test_force_evaluates_once_more_what_has_a_result(done):
    assert done.tick() == 1
    done.finish(495, {"HR@10": 0.5})
    done.tick()
    assert dict(done.entry(495).result.metrics) == {"HR@10": 0.5}


def test_force_evaluates_only_once_more(done):
    done.tick()
    done.finish(495, {"HR@10": 0.5})
    assert done.tick() == 0
    assert done.sidecar.is_idle


def test_force_keeps_the_result_of_a_checkpoint_that_is_gone(done):
    shutil.rmtree(done.checkpoint(495))
    assert done.tick() == 0
    assert dict(done.entry(495).result.metrics) == METRICS


def test_the_result_from_before_is_not_taken_for_that_of_the_forced_evaluation(done):
    done.tick()
    done.launcher.end(495, 0)
    done.sidecar.tick(budget=0)
    assert "but wrote no" in done.entry(495).failure.error
    assert dict(done.entry(495).result.metrics) == METRICS


def test_force_with_a_lost_state_evaluates_although_a_result_lies_there(done):
    done.state_file.unlink()
    done.restart(force=True)
    assert done.tick() == 1


def test_force_evaluates_what_has_failed_for_good(world):
    world.write(495)
    for _ in range(2):
        world.tick()
        world.fail(495)
    world.tick()
    world.restart(force=True)
    assert world.tick() == 1


def test_a_forced_evaluation_that_fails_is_reported_in_the_end(done):
    while done.tick():
        done.fail(495)
    left = unfinished(done.store.ledger, expects_delivery=False, expects_confirmation=False)
    assert len(left) == 1
    assert done.launcher.steps == [495, 495, 495]


def test_a_forced_evaluation_that_is_taken_over_is_not_forced_again(done):
    done.tick()
    done.restart(force=True)
    done.finish(495, {"HR@10": 0.5})
    assert done.tick() == 0


def test_an_evaluation_that_has_just_ended_by_itself_is_left_for_the_next_sidecar(world):
    world.write(495)
    world.tick()
    world.finish(495)
    world.sidecar.leave()
    world.restart()
    world.tick()
    assert world.entry(495).result is not None


# -- a stop after the sidecar was killed --------------------------------------------------------------------


def test_what_cannot_go_on_without_a_sidecar_is_ended_and_nothing_of_it_is_left(world):
    world.write(495)
    world.tick()
    begun = ResultPaths(world.config.results_root).begun(MODEL, "checkpoint-495")
    assert begun.exists()
    world.report(495, {"HR@10": 0.5})
    ((level, sentence),) = detach_jobs(world.store, world.launcher)
    assert level == logging.INFO
    assert sentence == "checkpoint-495: evaluation stopped, the checkpoint stays pending"
    assert world.launcher.running() == [] and world.entry(495).running is None
    assert not begun.exists() and not world.metrics_file(495).exists()


def test_what_goes_on_without_a_sidecar_is_left_to_the_next_start(world):
    world.write(495)
    world.tick()
    world.launcher.goes_on = True
    world.launcher.queue(495)
    ((_, sentence),) = detach_jobs(world.store, world.launcher)
    assert sentence == "checkpoint-495: left to the next start: PENDING (Priority)"
    assert world.entry(495).running is not None


def test_what_cannot_be_ended_is_an_error_and_does_not_keep_the_others_from_being_ended(tmp_path):
    world = World(tmp_path, slots=2)
    world.write(10)
    world.write(20)
    world.tick()
    cancel = world.launcher.cancel

    def refuse_the_first(handle):
        if handle["token"] == world.launcher.newest(10).token:
            raise LaunchError("pid 7 is still running after SIGKILL")
        return cancel(handle)

    world.launcher.cancel = refuse_the_first
    (level, sentence), _ = detach_jobs(world.store, world.launcher)
    assert level == logging.ERROR and sentence.startswith("checkpoint-10: pid 7 is still running")
    assert world.entry(10).running is not None and world.entry(20).running is None
