"""Passes one after the other: when they end, what wakes them, and what a stop leaves behind."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Callable, Optional

import pytest

from checkpoint_files import safetensors
from eval_sidecar.errors import StateError, UsageError
from eval_sidecar.evaluation.loop import run_loop
from eval_sidecar.ledger.requests import leave_request
from watching import READY_SECONDS, World

POLL_SECONDS = 60.0


class Wake(threading.Event):
    """An event for which waiting takes no time: the world's clock moves on, and the script goes on.

    Args:
        world: Whose time passes.
        script: What happens during each wait, in order; after the last one the loop is asked to stop.
        stop: The event that asks it to.
    """

    def __init__(self, world: World, script: list[Callable[[], object]], stop: threading.Event) -> None:
        super().__init__()
        self.world = world
        self.script = list(script)
        self.stop = stop
        self.waits: list[float] = []

    def wait(self, timeout: Optional[float] = None) -> bool:
        assert len(self.waits) < 100, "the loop does not end"
        self.waits.append(timeout or 0.0)
        self.world.now += timeout or 0.0
        if self.script:
            self.script.pop(0)()
        else:
            self.stop.set()
        return self.is_set()


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def request_file(world: World) -> Path:
    return world.state_file.with_suffix(".retry")


def run(world: World, *script: Callable[[], object], once: bool = False, **options) -> Wake:
    """Run the loop until it ends; the script says what happens while it waits."""
    stop = options.pop("stop", None) or threading.Event()
    wake = Wake(world, list(script), stop)
    run_loop(
        world.sidecar,
        options.pop("after_pass", lambda: None),
        once=once,
        poll_seconds=POLL_SECONDS,
        retry_request=request_file(world),
        wake=wake,
        stop=stop,
        monotonic=lambda: world.now,
        **options,
    )
    return wake


def nothing() -> None:
    """Nothing happens during this wait."""


# -- once ------------------------------------------------------------------------------------------------


def test_once_ends_at_once_where_there_is_nothing_to_do(world):
    assert run(world, once=True).waits == []


def test_once_ends_when_everything_that_was_ready_is_evaluated(world):
    world.write(10)
    world.write(20)
    wake = run(world, lambda: world.finish(10), nothing, lambda: world.finish(20), once=True)
    assert [entry.step for entry in world.store.ledger.steps() if entry.result] == [10, 20]
    assert len(wake.waits) == 3


def test_once_takes_what_appears_while_it_evaluates(world):
    world.write(10)

    def appear() -> None:
        world.write(20)
        world.finish(10)

    run(world, appear, lambda: world.finish(20), once=True)
    assert world.launcher.steps == [10, 20]


def test_once_tries_a_failed_evaluation_again_and_then_ends(world):
    world.write(10)
    run(world, lambda: world.fail(10), lambda: world.fail(10), once=True)
    assert world.launcher.steps == [10, 10]
    assert world.entry(10).has_failed


def test_once_does_not_wait_for_a_checkpoint_that_is_still_written(world):
    world.write(10, {"config.json": b"{}"})
    assert run(world, once=True).waits == []


def test_once_evaluates_no_more_than_its_budget_and_ends_when_those_have_ended(tmp_path):
    world = World(tmp_path, max_pending=2)
    for step in (10, 20, 30):
        world.write(step)
    run(world, lambda: world.finish(10), lambda: world.finish(20), once=True)
    assert world.launcher.steps == [10, 20]
    assert world.launcher.running() == []


# -- watching --------------------------------------------------------------------------------------------


def test_it_goes_on_when_there_is_nothing_to_do_and_polls(world):
    assert run(world, nothing, nothing).waits == [POLL_SECONDS] * 3


def test_it_looks_more_often_while_something_is_evaluated(world):
    world.write(10)
    wake = run(world, nothing, lambda: world.finish(10), nothing)
    assert wake.waits[0] == wake.waits[1] < 1
    assert wake.waits[2:] == [POLL_SECONDS] * 2


def test_a_cycle_starts_no_more_than_its_budget_and_the_next_goes_on(tmp_path):
    world = World(tmp_path, max_pending=1)
    for step in (10, 20):
        world.write(step)
    started: list[list[int]] = []
    script = [lambda: world.finish(10), lambda: started.append(world.launcher.steps)]
    run(world, *script, nothing)
    assert started == [[10]], "10 has ended, but the cycle's one evaluation is used up"
    assert world.launcher.steps == [10, 20]


def test_whoever_delivers_is_told_after_every_pass(world):
    told = []
    world.write(10)
    run(world, lambda: world.finish(10), nothing, after_pass=lambda: told.append(world.launcher.running()))
    assert told == [[10], [], []]


def test_a_delivery_that_is_broken_ends_the_loop_with_its_error(world):
    def broken() -> None:
        raise StateError("the disk is full")

    with pytest.raises(StateError, match="the disk is full"):
        run(world, nothing, after_pass=broken)


# -- requests --------------------------------------------------------------------------------------------


def fail_for_good(world: World, *steps: int) -> None:
    for step in steps:
        world.write(step)
        for _ in range(2):
            world.tick()
            world.fail(step)
        world.tick()


@pytest.mark.parametrize(("requested", "started"), [([20], [20]), ([], [10])])
def test_a_request_to_retry_is_taken_while_the_loop_runs(world, requested, started):
    fail_for_good(world, 10, 20)
    tried = len(world.launcher.steps)
    run(world, lambda: leave_request(request_file(world), requested), nothing)
    assert world.launcher.steps[tried:] == started, "no steps mean all of them"
    assert not request_file(world).exists()


def test_a_request_that_cannot_be_read_is_kept_aside_and_ends_nothing(world):
    fail_for_good(world, 10)
    request_file(world).write_text("{")
    run(world, nothing)
    assert world.entry(10).has_failed
    assert request_file(world).with_name(request_file(world).name + ".unreadable").read_text() == "{"


# -- stopping --------------------------------------------------------------------------------------------


def test_a_stop_ends_the_evaluation_and_leaves_its_checkpoint_pending(world):
    world.write(10)
    run(world)
    assert world.launcher.cancelled == [world.launcher.jobs[0].token]
    assert world.entry(10).is_pending
    assert json.loads(world.state_file.read_text())["failed_steps"] == {}


def test_a_stop_before_the_first_pass_starts_nothing(world):
    world.write(10)
    stop = threading.Event()
    stop.set()
    assert run(world, stop=stop).waits == []
    assert world.launcher.jobs == []


def test_once_that_is_stopped_ends_the_evaluation_too(world):
    world.write(10)
    run(world, once=True)
    assert world.launcher.cancelled == [world.launcher.jobs[0].token]


def test_a_stop_just_before_the_loop_forgets_who_woke_it_is_not_lost(world):
    class StoppedWhileClearing(Wake):
        def clear(self) -> None:
            self.stop.set()
            self.set()
            super().clear()

    stop = threading.Event()
    wake = StoppedWhileClearing(world, [], stop)
    options = {"once": False, "poll_seconds": POLL_SECONDS, "retry_request": request_file(world)}
    run_loop(world.sidecar, lambda: None, **options, wake=wake, stop=stop, monotonic=lambda: world.now)
    assert wake.waits == []


def test_a_folder_that_cannot_be_listed_for_a_moment_ends_nothing(world, monkeypatch):
    world.write(495)
    real, failures = world.sidecar.tick, [OSError(116, "Stale file handle")]

    def tick(budget=None):
        if failures:
            raise failures.pop()
        return real(budget)

    monkeypatch.setattr(world.sidecar, "tick", tick)
    run(world, nothing)
    assert world.entry(495).running is None  # ended with the loop, so it had been started
    assert world.entry(495).verdict == "complete"


def test_a_disk_that_is_full_or_gone_for_hours_is_told_of_once(world, monkeypatch, caplog):
    def tick(budget=None):
        raise OSError(28, "No space left on device", str(world.model_dir))

    monkeypatch.setattr(world.sidecar, "tick", tick)
    run(world, *[nothing] * 80)
    (said,) = [record.message for record in caplog.records]
    assert "No space left on device" in said and str(world.model_dir) in said


def test_a_disk_that_is_full_once_more_is_told_of_again(world, monkeypatch, caplog):
    real, failures = world.sidecar.tick, [True, True, False, True, True]

    def tick(budget=None):
        if failures and failures.pop(0):
            raise OSError(28, "No space left on device", str(world.model_dir))
        return real(budget)

    monkeypatch.setattr(world.sidecar, "tick", tick)
    run(world, *[nothing] * 6)
    assert ["No space left" in record.message for record in caplog.records] == [True, True]


# -- flags with which no job is taken --------------------------------------------------------------------


def test_a_watcher_waits_where_jobs_are_refused_and_keeps_pinning(world, caplog):
    world.launcher.mistake = "Slurm refuses such jobs (Invalid partition)"
    seen = []

    def rotate() -> None:
        seen.append((world.pins(), world.store.ledger.busy))
        shutil.rmtree(world.checkpoint(10))
        world.write(20)

    def fix() -> None:
        seen.append((world.pins(), world.store.ledger.busy))
        world.launcher.mistake = None

    world.write(10)
    run(world, rotate, nothing, fix, nothing)
    assert [pins for pins, _ in seen] == [[10], [10, 20]]
    assert all("Invalid partition" in busy for _, busy in seen)
    assert world.launcher.steps == [10]
    assert world.store.ledger.busy is None
    assert sum("Invalid partition" in message for message in caplog.messages) == 1


def test_once_ends_where_jobs_are_refused(world):
    world.launcher.mistake = "Slurm refuses such jobs (Invalid partition)"
    world.write(10)
    with pytest.raises(UsageError, match="Invalid partition"):
        run(world, once=True)


def test_the_end_of_a_quiet_period_is_not_slept_through(world):
    world.write(10, {"config.json": b"{}", "model.safetensors": safetensors(8)})
    world.now += 90.0
    wake = run(world, nothing)
    assert wake.waits[0] == pytest.approx(READY_SECONDS - 90.0)
    assert wake.waits[1] == world.launcher.pause, "it was started"
