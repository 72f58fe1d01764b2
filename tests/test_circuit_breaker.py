"""One cause is not tried on every checkpoint: evaluations pause, and go on once it may be fixed."""

from __future__ import annotations

import os

import pytest

from checkpoint_files import trainer_files
from eval_sidecar.ledger.status import unfinished, waiting
from eval_sidecar.report.export import model_json
from eval_sidecar.report.facts import model_facts
from watching import World


@pytest.fixture
def world(tmp_path) -> World:
    world = World(tmp_path)
    world.config.eval_script.write_text("python eval.py\n")
    return world


def fail(world: World, step: int, said: str = "KeyError: 'x'\n", exit_code: int = 1) -> None:
    """Let the evaluation of a step start, say something and fail."""
    if step not in world.launcher.running():
        world.tick()
    world.say(step, said)
    world.fail(step, exit_code)
    world.tick()


@pytest.fixture
def paused(world) -> World:
    """Ten checkpoints, the first two of which have failed for one cause."""
    for step in range(10, 110, 10):
        world.write(step)
    fail(world, 10)
    fail(world, 20)
    assert world.launcher.steps == [10, 20]
    return world


def test_a_second_checkpoint_that_fails_in_the_same_way_pauses_evaluation(paused, caplog):
    assert paused.tick(after=3600) == 0
    said = [*caplog.get_records("setup"), *caplog.records]
    (line,) = (text for record in said if (text := record.getMessage()).startswith("evaluation is paused"))
    assert "checkpoint-10 and checkpoint-20 failed in the same way" in line
    assert "exit code 1: KeyError: 'x'" in line and "checkpoint-20.log" in line and "retry" in line
    assert paused.sidecar.is_idle


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            "error: /m/checkpoint-10/model: 12 of 9 at 10:05",
            "error: /m/checkpoint-20/model: 345 of 9 at 11:15",
        ),
        ("KeyError: <A at 0x7f3ab0>", "KeyError: <A at 0x7f94cd>"),
        ("checkpoint-10: line 7", "checkpoint-20: line 7"),
    ],
)
def test_steps_paths_numbers_and_addresses_make_no_other_cause(world, first, second):
    for step in (10, 20, 30):
        world.write(step)
    fail(world, 10, f"{first}\n")
    fail(world, 20, f"{second}\n")
    assert world.launcher.steps == [10, 20]


@pytest.mark.parametrize(
    ("said", "exit_code"), [("ValueError: y\n", 1), ("KeyError: 'x'\n", 12)], ids=["words", "exit code"]
)
def test_failures_of_two_causes_pause_nothing(world, said, exit_code):
    for step in (10, 20, 30):
        world.write(step)
    fail(world, 10)
    fail(world, 20, said, exit_code)
    assert world.launcher.running() == [30]


def test_one_checkpoint_alone_that_fails_twice_pauses_nothing(world):
    world.write(10)
    fail(world, 10)
    fail(world, 10)
    assert world.entry(10).has_failed
    world.write(20)
    assert world.tick() == 1


def test_after_a_success_a_failure_is_a_matter_of_its_checkpoint(world):
    for step in (10, 20, 30, 40):
        world.write(step)
    fail(world, 10)
    world.finish(20)
    world.tick()
    fail(world, 30)
    fail(world, 40)
    assert world.launcher.running() == [10]


def test_a_success_of_what_still_ran_ends_the_pause(tmp_path):
    world = World(tmp_path, slots=3)
    for step in (10, 20, 30, 40):
        world.write(step)
    world.tick()
    world.fail(10)
    world.fail(20)
    assert world.tick() == 0
    world.finish(30)
    assert world.tick() == 3
    assert world.launcher.running() == [40, 10, 20]
    assert world.store.ledger.busy is None


@pytest.mark.parametrize("kind", ["evicted", "cancelled", "rewritten"])
def test_what_was_not_the_evaluations_own_doing_pauses_nothing(tmp_path, kind):
    world = World(tmp_path, max_evictions=0)
    for step in (10, 20, 30):
        world.write(step)
    world.tick()
    for step in (10, 20):
        if kind == "evicted":
            world.launcher.evict(step)
        elif kind == "cancelled":
            world.launcher.cancel_by_hand(step)
        else:
            world.write(step, {**trainer_files(step), "config.json": b'{"is": "new"}'})
            world.finish(step)
        world.tick()
    assert 30 in world.launcher.steps


def test_new_checkpoints_are_pinned_in_a_pause(paused):
    paused.write(200)
    paused.tick()
    assert 200 in paused.sidecar.pins.held()


def test_a_pause_outlives_the_sidecar(paused):
    paused.restart()
    assert paused.tick() == 0
    assert "is paused" in paused.store.ledger.busy


def test_a_pause_is_told_once_and_not_once_a_checkpoint(paused):
    ledger = paused.store.ledger
    (line,) = unfinished(ledger, expects_delivery=False, expects_confirmation=False)
    assert line.startswith("evaluation is paused: checkpoint-10 and checkpoint-20")
    assert all(line.endswith("; evaluation is paused") for line in waiting(ledger) if "-30:" in line)
    assert model_json(model_facts(ledger, paused.state_file, paused.now))["paused"] == line


def change_script(world: World) -> None:
    world.config.eval_script.write_text("python3 eval.py\n")


def change_named_file(world: World) -> None:
    (world.config.repo_root / "eval.py").write_text("print(1)\n")


def install_package(world: World) -> None:
    os.utime(world.config.repo_root / "python/lib/python3.11/site-packages", (1, 1))


@pytest.mark.parametrize("change", [change_script, change_named_file, install_package])
def test_a_pause_ends_when_script_or_installed_packages_change_and_failures_are_forgotten(world, change):
    (world.config.repo_root / "python/lib/python3.11/site-packages").mkdir(parents=True)
    python = world.config.repo_root / "python/bin/python"
    python.parent.mkdir()
    python.touch(mode=0o755)
    world.restart(environment={"PYTHON_BIN": str(python)})
    for step in (10, 20, 30):
        world.write(step)
    fail(world, 10)
    fail(world, 10)
    fail(world, 20)
    assert world.tick() == 0
    change(world)
    assert world.tick() == 1
    assert world.launcher.running() == [10]
    assert (world.entry(10).attempts, world.entry(20).failure) == (0, None)
    assert world.store.ledger.busy is None


@pytest.mark.parametrize(
    "settings",
    [{"environment": {"CATEGORY": "Books"}}, {"placement": {"cuda_list": "1"}}],
    ids=["environment", "GPUs"],
)
def test_a_pause_ends_with_a_start_with_other_flags(paused, settings):
    paused.restart(**settings)
    assert paused.tick() == 1


def test_the_folder_of_kept_evaluators_is_no_change(paused):
    paused.restart(environment={"CATEGORY": "Toys", "EVAL_SIDECAR_WARM": "/tmp/other"})
    assert paused.tick() == 0


def test_a_checkpoint_of_another_format_is_tried_in_a_pause_and_alone(paused):
    paused.write(200, {**trainer_files(200), "config.json": b'{"model_type": "other"}'})
    paused.write(210)
    assert paused.tick() == 1
    assert paused.launcher.running() == [200]
    fail(paused, 200, "something else\n")
    assert paused.tick() == 0
    assert "KeyError" in paused.store.ledger.busy


def test_a_success_with_another_format_ends_the_pause(paused):
    paused.write(200, {**trainer_files(200), "config.json": b'{"model_type": "other"}'})
    paused.tick()
    paused.finish(200)
    assert paused.tick() == 1


def test_a_retry_ends_the_pause_and_the_same_cause_pauses_again(paused):
    paused.sidecar.clear_failures([10])
    assert paused.tick() == 1
    fail(paused, 10)
    fail(paused, 30)
    assert paused.tick() == 0
    assert "checkpoint-10 and checkpoint-30" in paused.store.ledger.busy


def test_a_stop_in_a_pause_keeps_the_last_copies_of_those_that_failed(world):
    for step in (10, 20):
        world.write(step)
    for step in (10, 20):
        world.tick()
        world.launcher.end(step)  # without numbers: final at once
        world.tick()
    for step in (10, 20):
        for path in world.checkpoint(step).iterdir():
            path.unlink()
        world.checkpoint(step).rmdir()
    world.tick()
    world.sidecar.leave()
    assert sorted(world.sidecar.pins.held()) == [10, 20]


# -- success without numbers -----------------------------------------------------------------------------


def test_a_success_without_numbers_is_not_tried_twice(world):
    world.write(10)
    world.tick()
    world.launcher.end(10)
    assert world.tick() == 0
    assert world.entry(10).has_failed and world.entry(10).attempts == 1


@pytest.mark.parametrize(
    "name",
    ["results/checkpoint-10/metrics.json", "results/my-model/10/metrics.json", "all_results.json"],
)
def test_numbers_that_were_written_just_now_to_another_place_are_named(world, name):
    world.write(10)
    old = world.config.repo_root / "eval_results.json"
    old.write_text("{}")
    os.utime(old, (1, 1))
    world.tick()
    path = world.config.repo_root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    world.launcher.end(10)
    world.tick()
    error = world.entry(10).failure.error
    assert f"it wrote {path}: the path must be {world.metrics_file(10)}" in error
