"""What a pass makes of pins: what settles is kept, scripts have copies, failures hold no disk for ever."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from pathlib import Path

import pytest

from checkpoint_files import safetensors, torch_zip, trainer_files, trainer_state, write_files
from eval_sidecar.checkpoints.space import Limits
from eval_sidecar.errors import CheckpointError
from eval_sidecar.types import Place
from watching import METRICS, READY_SECONDS, World


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


#: What a trainer leaves whose last file proves nothing.
UNPROVABLE = {"config.json": b"{}", "model.safetensors": safetensors(8)}


def started(world: World, step: int) -> Path:
    return Path(world.entry(step).running.path)


# -- what settles ----------------------------------------------------------------------------------------


def test_what_settles_is_evaluated_although_it_was_deleted_meanwhile(world):
    world.write(10, UNPROVABLE)
    world.tick()
    assert (world.entry(10).verdict, world.entry(10).pinned) == ("settling", True)
    shutil.rmtree(world.checkpoint(10))
    assert world.tick(after=READY_SECONDS / 2) == 0
    assert world.entry(10).verdict == "settling"
    assert world.tick(after=READY_SECONDS) == 1


def test_what_was_deleted_before_what_its_trainer_writes_last_is_gone(world):
    world.write(10)
    world.evaluate(10)
    world.write(20, UNPROVABLE)
    world.tick()
    shutil.rmtree(world.checkpoint(20))
    world.tick()
    assert world.entry(20).verdict == "gone"
    assert world.sidecar.pins.held() == {}


def test_a_pass_is_due_when_a_quiet_period_ends(world):
    world.write(10, UNPROVABLE)
    world.tick()
    assert world.sidecar.seconds_to_wait(1000.0) == READY_SECONDS
    world.tick(after=100.0)
    assert world.sidecar.seconds_to_wait(1000.0) == pytest.approx(READY_SECONDS - 100.0)
    assert world.sidecar.seconds_to_wait(5.0) == 5.0
    world.tick(after=READY_SECONDS)
    assert world.sidecar.seconds_to_wait(1000.0) == world.launcher.pause


# -- being deleted ---------------------------------------------------------------------------------------

#: As ext4 lists it, so in the order in which it is deleted.
DELETED_FIRST = ("training_args.bin", "tokenizer.json", "tokenizer_config.json", "rng_state.pth")


@pytest.mark.parametrize("count", range(1, 5))
def test_one_that_was_first_seen_half_deleted_is_not_evaluated_and_then_gone(world, count):
    world.write(10)
    world.launcher.slots = 0
    world.write(20)
    for name in DELETED_FIRST[:count]:
        (world.checkpoint(20) / name).unlink()
    world.launcher.slots = 2
    world.tick()
    assert world.launcher.running() == [10]
    assert world.entry(20).verdict == "settling"
    assert "being deleted?" in "".join(world.entry(20).evidence)


@pytest.mark.parametrize("count", range(1, 5))
def test_one_that_was_seen_whole_is_evaluated_whole_while_it_is_being_deleted(world, count):
    world.write(10)
    world.write(20)
    world.sidecar.pins.look()
    for name in DELETED_FIRST[:count]:
        (world.checkpoint(20) / name).unlink()
    world.launcher.slots = 2
    world.tick()
    assert world.launcher.running() == [10, 20]
    assert {"training_args.bin", "tokenizer.json"} <= {path.name for path in started(world, 20).iterdir()}


def test_one_without_training_args_does_not_wait_for_ever(world):
    world.write(10)
    world.evaluate(10)
    files = trainer_files(20)
    del files["training_args.bin"]
    world.write(20, files)
    assert world.tick() == 0
    assert world.tick(after=READY_SECONDS) == 1


def test_a_trainer_that_never_writes_training_args_waits_for_nothing(world):
    for step in (10, 20):
        files = trainer_files(step)
        del files["training_args.bin"]
        world.write(step, files)
        assert world.tick() == 1
        world.finish(step)
        world.tick()


# -- files that come later -------------------------------------------------------------------------------


def test_a_file_that_all_others_have_is_waited_for(world):
    for step in (10, 20):
        world.write(step, {**trainer_files(step), "preprocessor_config.json": b"{}"})
        world.evaluate(step)
    world.write(30)
    assert world.tick() == 0
    world.write(30, {"preprocessor_config.json": b"{}"})
    assert world.tick() == 1
    assert (started(world, 30) / "preprocessor_config.json").exists()


def test_a_retry_has_the_file_that_came_after_the_proof(world):
    world.write(10)
    world.tick()
    world.write(10, {"preprocessor_config.json": b"{}"})
    world.fail(10)
    assert world.tick() == 1
    assert (started(world, 10) / "preprocessor_config.json").exists()


def test_one_that_failed_for_good_has_it_too_when_somebody_retries_it(world):
    world.write(10)
    world.tick()
    for _ in range(2):
        world.fail(10)
        world.tick()
    world.write(10, {"preprocessor_config.json": b"{}"})
    world.tick()
    shutil.rmtree(world.checkpoint(10))
    world.sidecar.clear_failures(None)
    assert world.tick() == 1
    assert (started(world, 10) / "preprocessor_config.json").exists()


def test_the_marker_of_an_ended_job_keeps_a_checkpoint_back_while_it_is_there(world):
    folder = world.write(10, {**trainer_files(10), "checkpoint-is-incomplete.txt": b""})
    assert world.tick(after=READY_SECONDS * 20) == 0
    assert world.entry(10).verdict == "partial"
    (folder / "checkpoint-is-incomplete.txt").unlink()
    assert world.tick() == 1


def test_a_file_that_the_trainer_removes_after_the_proof_is_not_given_to_an_evaluation(world):
    folder = world.write(10, {**trainer_files(10), "pytorch_model.bin": torch_zip()})
    world.sidecar.pins.look()
    (folder / "pytorch_model.bin").unlink()
    world.tick()
    assert not (started(world, 10) / "pytorch_model.bin").exists()
    assert (started(world, 10) / "model.safetensors").exists()


# -- a script's own copy ---------------------------------------------------------------------------------


def test_what_a_script_does_to_its_copy_costs_no_result_and_does_not_reach_the_trainers_file(world):
    world.write(10)
    world.tick()
    copy = started(world, 10)
    (copy / "config.json").write_text('{"repaired": true}')
    (copy / "tokenizer.json").unlink()
    (copy / "cache").mkdir()
    world.finish(10)
    world.tick()
    assert dict(world.entry(10).result.metrics) == METRICS
    assert world.entry(10).failure is None
    assert (world.checkpoint(10) / "config.json").read_bytes() == trainer_files(10)["config.json"]
    assert not (world.checkpoint(10) / "cache").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("in_place", [True, False])
def test_what_the_trainer_does_to_its_file_meanwhile_does_cost_it(world, name, in_place):
    world.write(10)
    world.tick()
    content = trainer_files(10)[name]
    path = world.checkpoint(10) / name
    if not in_place:
        path.unlink()
    path.write_bytes(content)
    os.utime(path, (world.now + 10, world.now + 10))
    world.finish(10)
    world.tick()
    assert world.entry(10).result is None
    assert "rewritten" in world.entry(10).failure.error


def test_a_restart_knows_whose_change_it_was(world):
    world.write(10)
    world.launcher.goes_on = True
    world.tick()
    (started(world, 10) / "config.json").write_text('{"repaired": true}')
    world.restart()
    world.finish(10)
    world.tick()
    assert world.entry(10).result is not None


def test_one_that_is_being_written_anew_is_not_started_half(world, monkeypatch):
    world.write(10)
    world.launcher.slots = 0
    world.tick()
    world.launcher.slots = 1
    check_out = world.sidecar._readiness.check_out

    def write_anew_first(checkpoint):
        write_files(world.checkpoint(10), {"model.safetensors": safetensors(64)[:-1]})
        return check_out(checkpoint)

    monkeypatch.setattr(world.sidecar._readiness, "check_out", write_anew_first)
    assert world.tick() == 0
    assert world.launcher.jobs == []


# -- failures and the disk -------------------------------------------------------------------------------


def fail_for_good(world: World, step: int) -> None:
    world.tick()
    for _ in range(2):
        world.fail(step, exit_code=step)  # each for a reason of its own
        world.tick()


def test_a_broken_script_keeps_no_more_of_deleted_checkpoints_than_the_bound(world):
    world.restart(limits=Limits(0, most=2))
    for step in range(1, 8):
        world.write(step)
        fail_for_good(world, step)
        shutil.rmtree(world.checkpoint(step))
    world.tick()
    assert sorted(world.sidecar.pins.held()) == [6, 7]
    entry = world.entry(3)
    assert entry.evidence[-1] == "pin given up: there are more pins than --max-pins (2)"
    assert entry.has_failed and not entry.pinned


def test_a_failed_one_whose_original_is_there_stays_as_it_costs_nothing(world):
    world.restart(limits=Limits(0, most=1))
    for step in (1, 2, 3):
        world.write(step)
        fail_for_good(world, step)
    assert sorted(world.sidecar.pins.held()) == [1, 2, 3]


def test_a_stop_gives_up_what_only_a_retry_would_need_with_a_line(world, caplog):
    world.write(1)
    fail_for_good(world, 1)
    world.launcher.slots = 0
    world.write(2)
    world.tick()
    for step in (1, 2):
        shutil.rmtree(world.checkpoint(step))
    world.tick()
    with caplog.at_level(logging.WARNING):
        world.sidecar.leave()
    assert "checkpoint-1: its evaluation failed; its pin, the last copy, is removed" in caplog.text
    assert list(world.sidecar.pins.held()) == [2]
    world.sidecar.clear_failures(None)
    world.tick()
    assert world.entry(1).verdict == "gone"


def test_a_retry_of_one_whose_pin_was_given_up_says_that_it_is_gone(world):
    world.restart(limits=Limits(0, most=1))
    for step in (1, 2):
        world.write(step)
        fail_for_good(world, step)
        shutil.rmtree(world.checkpoint(step))
    world.tick()
    world.sidecar.clear_failures([1])
    assert world.tick() == 0
    assert world.entry(1).verdict == "gone"


def test_one_that_waits_and_is_given_up_is_gone_and_says_why(world):
    world.restart(limits=Limits(0, most=1))
    world.launcher.slots = 0
    for step in (1, 2, 3):
        world.write(step)
        world.tick()
        shutil.rmtree(world.checkpoint(step))
    world.tick()
    assert world.entry(1).verdict == "gone"
    assert world.entry(1).evidence[-1] == "pin given up: there are more pins than --max-pins (1)"


# -- no folder yet ---------------------------------------------------------------------------------------


def test_of_a_link_that_is_turned_to_another_training_nothing_is_pinned_or_evaluated(tmp_path):
    world = World(tmp_path)
    first, second = world.model_dir.with_name("run1"), world.model_dir.with_name("run2")
    world.model_dir.rmdir()
    first.mkdir()
    second.mkdir()
    world.model_dir.symlink_to(first)
    world.store.update(lambda ledger: ledger.placed(Place(socket.gethostname(), str(first))))
    world.write(100)
    world.evaluate(100)
    world.model_dir.unlink()
    world.model_dir.symlink_to(second)
    world.write(200)
    world.sidecar.pins.look()
    assert world.sidecar.pins.held() == {}
    with pytest.raises(CheckpointError, match="run1"):
        world.tick()


def test_a_model_dir_that_is_not_there_yet_is_waited_for_and_not_made(world):
    world.model_dir.rmdir()
    world.tick()
    assert "does not exist yet" in world.store.ledger.busy
    assert not world.model_dir.exists()
    world.write(10)
    assert world.tick() == 1
    assert world.store.ledger.busy is None


# -- accelerate, adapters, links -------------------------------------------------------------------------


def test_a_named_adapter_is_evaluated_at_once(world):
    write_files(world.checkpoint(10) / "policy", {"adapter_model.safetensors": safetensors(8)})
    world.write(10, {"trainer_state.json": trainer_state(10)})
    assert world.tick() == 1
    assert (started(world, 10) / "policy" / "adapter_model.safetensors").exists()


def test_a_link_that_leads_nowhere_is_a_verdict_and_not_a_deletion(world, caplog):
    folder = world.write(10)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/nowhere/tokenizer.json")
    for _ in range(3):
        assert world.tick() == 0
    assert world.entry(10).verdict == "partial"
    assert "tokenizer.json is a link to /nowhere/tokenizer.json" in world.entry(10).evidence[0]
    assert "deleted" not in caplog.text


def test_the_verdict_of_a_link_that_leads_nowhere_outlives_the_original(world):
    folder = world.write(10)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/nowhere/tokenizer.json")
    world.tick()
    shutil.rmtree(folder)
    assert world.tick() == 0
    assert world.entry(10).verdict == "gone"


def test_the_ledger_keeps_what_is_pinned_and_what_not(world):
    world.launcher.slots = 0
    world.write(10)
    world.tick()
    saved = json.loads(world.state_file.read_text())["checkpoints"]["10"]
    assert saved["pinned"] is True
    assert saved["evidence"][-1] == "pinned"


def test_how_long_one_has_waited_is_not_written_at_every_pass(world):
    world.launcher.slots = 0
    world.write(10, UNPROVABLE)
    world.tick(after=READY_SECONDS)
    before = world.state_file.read_bytes()
    world.tick(after=READY_SECONDS)
    assert world.entry(10).verdict == "quiet"
    assert world.state_file.read_bytes() == before


def test_what_its_trainer_removed_on_purpose_does_not_keep_a_checkpoint_partial(world):
    folder = world.write(10, {**UNPROVABLE, "optimizer.pt": torch_zip()})
    world.tick()
    assert world.entry(10).verdict == "partial"
    (folder / "optimizer.pt").unlink()
    assert world.tick(after=READY_SECONDS * 2) == 1
    assert world.entry(10).verdict == "quiet"
