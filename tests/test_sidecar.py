"""One pass over one model: what is started, in which order, and what becomes of it."""

from __future__ import annotations

import os

import pytest

from eval_sidecar.evaluation import origins
from eval_sidecar.ledger.ledger import Delivery
from eval_sidecar.types import DeliveryStatus
from watching import METRICS, MODEL, World

PENDING, _, CONFIRMED = DeliveryStatus


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


# -- what is started -------------------------------------------------------------------------------------


def test_a_proved_checkpoint_is_started_at_once(world):
    world.write(495)
    assert world.tick() == 1
    assert world.launcher.running() == [495]


def test_the_script_is_called_as_users_scripts_expect_it(world):
    world.write(495)
    world.tick()
    (job,) = world.launcher.jobs
    assert job.argv == ("bash", str(world.config.eval_script), str(world.model_dir))
    assert job.cwd == world.config.repo_root
    assert job.env == {
        "CATEGORY": "Toys",
        "CKPT_LIST": str(world.pins_folder / "checkpoint-495"),
    }


def test_every_checkpoint_has_a_log_of_its_own(world):
    world.launcher.slots = 2
    world.write(10)
    world.write(20)
    world.tick()
    logs = [job.log for job in world.launcher.jobs]
    assert logs == [world.config.log_dir / "my-model" / f"checkpoint-{step}.log" for step in (10, 20)]


def test_one_that_cannot_be_proved_is_started_after_the_quiet_period_and_not_before(world):
    world.write(495, {"weights.pt": b"x"})
    assert world.tick() == 0
    assert world.tick(after=world.config.ready_seconds - 1) == 0
    assert world.tick(after=1) == 1
    assert world.entry(495).verdict == "quiet"


def test_a_change_begins_the_quiet_period_anew(world):
    world.write(495, {"weights.pt": b"x"})
    world.tick()
    world.tick(after=world.config.ready_seconds - 1)
    world.write(495, {"weights.pt": b"xy"})
    assert world.tick(after=world.config.ready_seconds - 1) == 0
    assert world.tick(after=1) == 1


def test_files_from_a_clock_that_is_ahead_are_quiet_by_what_was_seen_here(world):
    world.now += 7200
    world.write(495, {"weights.pt": b"x"})
    world.now -= 7200
    assert world.tick() == 0
    assert world.tick(after=world.config.ready_seconds) == 1


# -- in which order --------------------------------------------------------------------------------------


def finish_all(world: World, *steps: int) -> list[int]:
    world.tick()
    for step in steps:
        world.finish(step)
        world.tick()
    return world.launcher.steps


def test_the_oldest_is_taken_first(world):
    for step in (1000, 20, 300):
        world.write(step)
    assert finish_all(world, 20, 300, 1000) == [20, 300, 1000]


def test_the_newest_is_taken_first_where_that_was_asked_for(tmp_path):
    world = World(tmp_path, newest_first=True)
    for step in (1000, 20, 300):
        world.write(step)
    assert finish_all(world, 1000, 300, 20) == [1000, 300, 20]


def test_one_that_failed_waits_behind_those_that_were_never_tried(world):
    for step in (10, 20):
        world.write(step)
    world.tick()
    world.fail(10)
    world.tick()
    assert world.launcher.steps == [10, 20]


def test_one_that_appears_while_another_is_evaluated_is_pinned_at_once_and_follows(world):
    world.write(10)
    world.tick()
    world.write(20)
    assert world.tick() == 0
    assert world.pins() == [10, 20]
    world.finish(10)
    assert world.tick() == 1
    assert world.launcher.running() == [20]


def test_as_many_are_started_as_there_are_slots(tmp_path):
    world = World(tmp_path, slots=2)
    for step in (10, 20, 30):
        world.write(step)
    assert world.tick() == 2
    world.finish(10)
    assert world.tick() == 1
    assert world.launcher.running() == [20, 30]


def test_a_pass_starts_no_more_than_its_budget(tmp_path):
    world = World(tmp_path, slots=3)
    for step in (10, 20, 30):
        world.write(step)
    assert world.tick(budget=2) == 2
    assert world.tick(budget=0) == 0
    assert world.launcher.running() == [10, 20]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda world: world.launcher.cancel_by_hand(495), "job 7: CANCELLED"),
        (lambda world: world.launcher.run_out_of_time(495), "job 7: TIMEOUT"),
        (lambda world: world.launcher.evict(495), "NODE_FAIL"),
        (lambda world: world.launcher.lose(495), "no trace of it"),
        (lambda world: None, "took longer than 86400 s"),
    ],
)
def test_the_log_of_an_attempt_that_could_not_say_so_itself_ends_with_how_it_ended(world, end, said):
    world.write(495)
    world.tick()
    world.say(495, "half a line")
    end(world)
    world.tick(after=86401.0)
    last = world.launcher.newest(495).log.read_text().splitlines()[-1]
    assert last.startswith("=== eval-sidecar: ended after 86401 s, ") and said in last
    assert "half a line" in world.launcher.newest(495).log.read_text().splitlines()


def test_the_log_of_an_evaluation_that_was_stopped_with_its_sidecar_says_so(world):
    world.write(495)
    world.tick()
    world.say(495, "at work\n")
    world.now += 5.0
    world.sidecar.leave()
    assert "ended after 5 s" in world.launcher.newest(495).log.read_text().splitlines()[-1]


# -- results ---------------------------------------------------------------------------------------------


def test_a_result_is_noted_and_waits_for_its_delivery(world):
    world.write(495)
    world.evaluate(495)
    entry = world.entry(495)
    assert (dict(entry.result.metrics), entry.running, entry.delivery) == (METRICS, None, Delivery(PENDING))


def test_a_checkpoint_with_a_result_is_not_evaluated_again(world):
    world.write(495)
    world.evaluate(495)
    assert world.tick(after=1e6) == 0
    world.restart()
    assert world.tick() == 0
    assert world.launcher.steps == [495]
    assert world.sidecar.is_idle


def test_the_pin_is_removed_once_the_result_is_there(world):
    world.write(495)
    world.evaluate(495)
    assert world.pins() == []
    assert not world.entry(495).pinned


def test_a_metrics_file_that_is_already_there_is_taken_without_an_evaluation(world):
    world.write(495)
    world.report(495)
    assert world.tick() == 0
    assert dict(world.entry(495).result.metrics) == METRICS


def test_the_result_of_a_checkpoint_that_is_no_longer_there_is_taken_too(world):
    world.report(495)
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS
    assert len(world.store.ledger.due()) == 1


def test_a_result_that_changes_later_is_due_once_more(world):
    world.write(495)
    world.evaluate(495)
    confirmed = Delivery(CONFIRMED, digest=world.entry(495).result.digest, index=495)
    world.store.update(lambda ledger: ledger.with_entry(495, delivery=confirmed))
    world.report(495, {"HR@10": 0.5})
    world.tick()
    assert world.entry(495).due() == Delivery(PENDING, revision=1)


@pytest.fixture
def settled(world):
    """A world with a result in a folder that has not changed for long, and that was looked at since."""
    world.write(495)
    world.evaluate(495)
    folder = world.config.results_root / MODEL
    os.utime(folder, (1_600_000_000, 1_600_000_000))
    world.tick()
    return world


def test_a_pass_looks_at_no_result_of_a_folder_that_has_not_changed(settled, monkeypatch):
    monkeypatch.setattr(origins, "stamp", lambda path: pytest.fail(f"{path} was looked at"))
    settled.tick()
    settled.tick(after=60.0)


def test_a_new_result_is_taken_at_once_though_others_are_not_looked_at(settled):
    settled.report(500)
    settled.tick()
    assert settled.entry(500).result is not None


def test_a_result_written_anew_in_place_is_noticed_within_ten_minutes(settled):
    settled.report(495, {"HR@10": 0.5})
    settled.tick(after=60.0)
    assert settled.entry(495).result.metrics == METRICS
    settled.tick(after=540.0)
    assert settled.entry(495).result.metrics == {"HR@10": 0.5}


def test_the_same_numbers_written_again_are_not_due_once_more(world):
    world.write(495)
    world.evaluate(495)
    confirmed = Delivery(CONFIRMED, digest=world.entry(495).result.digest, index=495)
    world.store.update(lambda ledger: ledger.with_entry(495, delivery=confirmed))
    world.report(495, {**METRICS, "note": "written again"})
    world.tick()
    assert world.store.ledger.due() == []


def test_a_result_that_becomes_unreadable_later_does_not_lose_what_was_known(world, caplog):
    world.write(495)
    world.evaluate(495)
    world.report(495, "{")
    world.tick()
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS
    assert caplog.text.count("what was known before is kept") == 1


# -- bad results -----------------------------------------------------------------------------------------

BAD = {
    "empty": ("", "is empty"),
    "truncated": ('{"HR@10": 0.', "is not valid JSON"),
    "a list": ("[0.5]", "not an object of numbers"),
    "no number": ('{"model": "x"}', "has no number in it"),
    "not a number": ('{"HR@10": NaN}', "HR@10 (nan, not finite)"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD)
def test_an_evaluation_that_leaves_a_bad_file_has_failed_for_that_reason(world, content, said):
    world.write(495)
    world.tick()
    world.finish(495, content)
    world.sidecar.tick(budget=0)
    failure = world.entry(495).failure
    assert said in failure.error
    assert str(world.metrics_file(495)) in failure.error


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD)
def test_a_bad_file_is_kept_aside_when_the_checkpoint_is_evaluated_again(world, content, said):
    world.write(495)
    world.report(495, content)
    assert world.tick() == 1
    kept = world.metrics_file(495).with_name("metrics.json.unreadable")
    assert kept.read_text() == content
    world.finish(495)
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD)
def test_bad_results_use_up_the_attempts_like_any_failure(world, content, said):
    world.write(495)
    for _ in range(2):
        world.tick()
        world.finish(495, content)
    assert world.tick() == 0
    assert world.entry(495).has_failed


def test_an_evaluation_that_ends_well_without_a_result_has_failed(world):
    world.write(495)
    world.tick()
    world.launcher.end(495, 0)
    world.sidecar.tick(budget=0)
    assert f"exit code 0, but wrote no {world.metrics_file(495)}" in world.entry(495).failure.error


def test_a_bad_file_of_a_checkpoint_that_is_gone_is_a_failure_that_stays(world):
    world.report(495, "{")
    world.tick()
    entry = world.entry(495)
    assert "is not valid JSON" in entry.failure.error
    assert entry.has_failed
    assert not entry.is_pending


def test_a_good_file_mends_a_bad_one_of_a_checkpoint_that_is_gone(world):
    world.report(495, "{")
    world.tick()
    world.report(495)
    world.tick()
    assert (dict(world.entry(495).result.metrics), world.entry(495).failure) == (METRICS, None)


# -- failures --------------------------------------------------------------------------------------------


def test_a_failed_evaluation_is_tried_again_and_then_stays_failed_with_its_reason(world):
    world.write(495)
    world.tick()
    world.say(495, "loading\nCUDA out of memory\n\n")
    world.fail(495, 3)
    assert world.tick() == 1
    assert not world.entry(495).failure.final
    world.say(495, "loading\nCUDA out of memory\n\n")
    world.fail(495, 3)
    assert world.tick(after=1e6) == 0
    failure = world.entry(495).failure
    assert failure.error == "the evaluation script ended with exit code 3: CUDA out of memory"
    assert failure.log == str(world.launcher.newest(495).log)
    assert (failure.final, world.sidecar.is_idle) == (True, True)


@pytest.mark.parametrize("restarts", [False, True])
def test_what_an_attempt_before_has_said_is_not_the_reason_of_the_next_failure(world, restarts):
    world.write(495)
    world.tick()
    world.say(495, "CUDA out of memory\n")
    world.fail(495, 3)
    world.tick()
    if restarts:
        world.restart()
    world.fail(495, 4)
    world.tick()
    assert world.entry(495).failure.error == "the evaluation script ended with exit code 4"


def test_a_result_forgets_the_failure_before_it(world):
    world.write(495)
    world.tick()
    world.fail(495)
    world.evaluate(495)
    assert (world.entry(495).failure, world.entry(495).attempts) == (None, 0)


def test_a_failed_checkpoint_does_not_keep_others_from_being_evaluated(world):
    world.write(10)
    for _ in range(2):
        world.tick()
        world.fail(10)
    world.write(20)
    world.tick()
    assert world.launcher.running() == [20]


def test_a_failure_stays_over_a_restart_and_attempts_are_not_counted_anew(world):
    world.write(495)
    world.tick()
    world.fail(495)
    world.sidecar.tick(budget=0)
    world.restart()
    world.tick()
    world.fail(495)
    assert world.tick() == 0
    world.restart()
    assert world.tick() == 0
    assert world.launcher.steps == [495, 495]


def test_a_retry_gives_it_all_its_attempts_again(world):
    world.write(495)
    for _ in range(2):
        world.tick()
        world.fail(495)
    world.tick()
    world.sidecar.clear_failures([495])
    assert world.tick() == 1
    world.fail(495)
    assert world.tick() == 1


def test_a_retry_of_some_leaves_the_others_failed(tmp_path):
    world = World(tmp_path, slots=2, max_attempts=1)
    for step in (10, 20):
        world.write(step)
    world.tick()
    world.fail(10)
    world.fail(20)
    world.tick()
    world.sidecar.clear_failures([20])
    world.tick()
    assert world.launcher.running() == [20]


def test_an_evaluation_that_cannot_be_started_counts_as_an_attempt(world):
    world.write(495)
    world.launcher.refusal = "checkpoint-495: no such folder"
    world.tick()
    assert world.entry(495).failure.error == "no such folder"
    assert (world.entry(495).attempts, world.entry(495).running) == (1, None)


def test_an_evaluation_beyond_the_time_limit_is_ended_and_has_failed(tmp_path):
    world = World(tmp_path, time_limit=600.0)
    world.write(495)
    world.tick()
    world.tick(after=600.0)
    assert world.launcher.cancelled == []
    world.now += 1
    world.sidecar.tick(budget=0)
    assert world.launcher.cancelled == [world.launcher.jobs[0].token]
    assert "took longer than 600 s" in world.entry(495).failure.error


def test_without_a_time_limit_an_evaluation_may_take_for_ever(tmp_path):
    world = World(tmp_path, time_limit=0.0)
    world.write(495)
    world.tick()
    world.tick(after=1e9)
    assert world.launcher.running() == [495]


def test_a_cancel_ends_everything_and_counts_as_no_attempt(tmp_path):
    world = World(tmp_path, slots=2)
    for step in (10, 20):
        world.write(step)
    world.tick()
    world.sidecar.leave()
    assert world.launcher.running() == []
    assert [world.entry(step).is_pending for step in (10, 20)] == [True, True]
    assert [world.entry(step).attempts for step in (10, 20)] == [0, 0]
    assert not world.sidecar.is_running
